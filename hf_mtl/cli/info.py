"""`hf-mtl info`: what a model is."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("info")(info)


def info(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show a model's tasks, labels and parameters, shared and per head."""
    from rich.table import Table

    from hf_mtl.cli._terminal import out, quiet_libraries
    from hf_mtl.inference.loading import load_model
    from hf_mtl.writing import to_json

    quiet_libraries()
    loaded, tokenizer = load_model(model, device="cpu")
    facts = describe(loaded, tokenizer)
    if as_json:
        typer.echo(to_json(facts, indent=2))
        return
    table = Table(title=f"{facts['encoder']} encoder, {facts['max_length']} tokens", title_justify="left")
    for name, justify in (("task", "left"), ("type", "left"), ("pooling", "left"), ("labels", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("parameters", justify="right")
    for task in facts["tasks"]:
        labels = task["labels"] or []
        shown = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
        own = "" if task["parameters"] is None else f"{task['parameters']:,}"
        table.add_row(task["name"], task["type"], task["pooling"] or "", shown, own)
    if facts["parameters"] is not None:
        table.add_section()
        table.add_row("shared encoder", "", "", "", f"{facts['parameters']['shared']:,}")
        table.add_row("all", "", "", "", f"{facts['parameters']['total']:,}", style="bold")
    out().print(table)


def describe(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return a model's facts as plain JSON values; those of an exported graph have no numbers of parameters."""
    from hf_mtl.inference.exported import ExportedModel

    def count(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    trainable = not isinstance(model, ExportedModel)  # a graph does not tell its numbers apart
    tasks: list[dict[str, Any]] = []
    for spec in model.specs:
        own = sum(map(count, model.own_modules(spec.name))) if trainable else None
        labels = list(spec.labels) if spec.labels else None
        pooling = model.poolings.get(spec.name) if trainable else spec.pooling
        tasks.append({"name": spec.name, "type": spec.type, "pooling": pooling, "labels": labels, "parameters": own})
    return {
        "encoder": model.config.get_text_config().model_type,
        "max_length": tokenizer.model_max_length,
        "tasks": tasks,
        "parameters": {"shared": count(model.encoder), "total": count(model)} if trainable else None,
    }
