"""Draw what `hf-mtl evaluate` and `hf-mtl predict` print: `python scripts/picture.py MODEL RECIPE [--text ...]`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.console import Console

from hf_mtl.cli._terminal import answer_table, quiet_libraries, score_table
from hf_mtl.data.preparation import load_recipe
from hf_mtl.evaluation.scoring import score
from hf_mtl.inference.bulk import predict_rows
from hf_mtl.inference.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--text", default="turn off the lights in the kitchen")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "demo.svg")
    options = parser.parse_args()

    quiet_libraries()
    model, tokenizer = load_model(options.model)
    data = load_recipe(options.recipe, tokenizer=tokenizer, tasks=model.specs, splits=["test"])
    console = Console(record=True, width=78, highlight=False)
    console.print("[bold]$[/] hf-mtl evaluate runs/demo/model runs/demo/data/recipe.yaml")
    console.print(score_table(score(model, tokenizer, data.test), title="test split"))
    console.print(f'\n[bold]$[/] hf-mtl predict runs/demo/model --text "{options.text}"')
    row = next(predict_rows(model, tokenizer, [{"text": options.text}]))
    console.print(answer_table(model.specs, row["predictions"]))
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="hf-mtl"), flags=re.DOTALL)  # no web fonts
    options.output.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
