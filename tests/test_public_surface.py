"""What `import hf_mtl` offers, and what it does not do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hf_mtl
from hf_mtl.model.modeling import MultiTaskModel

SOURCE = Path(hf_mtl.__file__)
HEAVY = ("torch", "transformers", "datasets", "numpy", "accelerate", "evaluate", "huggingface_hub", "yaml", "rich")


def tree() -> ast.Module:
    return ast.parse(SOURCE.read_text(encoding="utf-8"))


def names_for_type_checkers() -> dict[str, str]:
    """Map each name imported under TYPE_CHECKING to the module it comes from, without the package's own name."""
    (block,) = [node for node in tree().body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    found: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            assert alias.asname is None
            found[alias.name] = node.module.removeprefix("hf_mtl.")
    return found


def constant(name: str) -> object:
    for node in tree().body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} is not assigned")


def run(program: str) -> object:
    """Run a program in an interpreter of its own and return the JSON it prints last."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_is_the_public_surface() -> None:
    names = hf_mtl.__all__
    assert len(names) <= 25
    assert len(set(names)) == len(names)
    assert constant("__all__") == names
    assert constant("_MODULES") == names_for_type_checkers()
    assert set(names) == set(names_for_type_checkers())
    assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize("name", hf_mtl.__all__)
def test_a_public_name_is_the_one_of_its_module(name: str) -> None:
    value = getattr(hf_mtl, name)
    assert value is getattr(import_module(f"hf_mtl.{names_for_type_checkers()[name]}"), name)
    assert vars(hf_mtl)[name] is value  # found without a lookup from now on


@pytest.mark.parametrize("name", hf_mtl.__all__)
def test_a_public_name_says_what_it_is(name: str) -> None:
    value = getattr(hf_mtl, name)
    assert value.__doc__
    if not name.isupper():
        assert value.__name__ == name
        assert value.__module__ == f"hf_mtl.{names_for_type_checkers()[name]}"


def test_dir_lists_the_public_names() -> None:
    assert {*hf_mtl.__all__, "__version__"} <= set(dir(hf_mtl))
    assert dir(hf_mtl) == sorted(set(dir(hf_mtl)))


@pytest.mark.parametrize("name", ["MultiTaskModels", "_private", "torch", "__wrapped__", "pytest_plugins"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    assert not hasattr(hf_mtl, name)
    with pytest.raises(AttributeError, match=f"module 'hf_mtl' has no attribute '{name}'"):
        getattr(hf_mtl, name)
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from hf_mtl import {name}")


def test_the_package_is_typed() -> None:
    assert SOURCE.with_name("py.typed").exists()


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"""
import sys, json
import hf_mtl
hf_mtl.__version__, dir(hf_mtl), hasattr(hf_mtl, "no_such_name")
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    assert run(program) == []


def test_importing_the_package_leaves_environment_and_logging_alone() -> None:
    program = """
import json, logging, os, signal, sys, warnings

def state():
    root = logging.getLogger()
    loggers = {name: str(logger) for name, logger in sorted(root.manager.loggerDict.items())}
    handlers = [str(handler) for handler in root.handlers]
    streams = [str(stream) for stream in (sys.stdout, sys.stderr)]
    return [dict(os.environ), root.level, root.manager.disable, handlers, loggers, streams, sys.path, os.getcwd(),
            [str(entry) for entry in warnings.filters], str(signal.getsignal(signal.SIGINT)), str(sys.excepthook)]

before = json.loads(json.dumps(state()))
import hf_mtl
print(json.dumps([before, state()]))
"""
    before, after = run(program)  # type: ignore[misc]
    assert before == after


REGISTERED = """
import json
import transformers
from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
config = AutoConfig.for_model("hf_mtl")
model_class = AutoModel._model_mapping[type(config)]
task = PIPELINE_REGISTRY.check_task("multi-task")
print(json.dumps([type(config).__name__, model_class.__name__, task[0], task[1]["impl"].__name__, task[1]["type"]]))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from hf_mtl import MultiTaskModel",
        pytest.param("import hf_mtl.auto", marks=pytest.mark.slow),
        pytest.param("import hf_mtl; hf_mtl.HEADS", marks=pytest.mark.slow),
        pytest.param("import importlib, hf_mtl.auto; importlib.reload(hf_mtl.auto)", marks=pytest.mark.slow),
    ],
)
def test_using_a_name_registers_with_transformers(statement: str) -> None:
    expected = ["MultiTaskConfig", "MultiTaskModel", "multi-task", "MultiTaskPipeline", "text"]
    assert run(statement + REGISTERED) == expected


def test_without_use_nothing_is_registered() -> None:
    program = """
import json
import hf_mtl
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
print(json.dumps("hf_mtl" in CONFIG_MAPPING))
"""
    assert run(program) is False


def test_a_star_import_gives_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from hf_mtl import *", names)
    assert set(names) - {"__builtins__"} == set(hf_mtl.__all__)


@pytest.mark.parametrize("module", ["hf_mtl.model.surgery", "hf_mtl.explain.claims", "hf_mtl.inference.loading"])
def test_whatever_is_imported_transformers_loads_a_model(
    module: str, tiny_model: MultiTaskModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    code = (
        f"import {module}; from transformers import AutoModel; "
        f"print(type(AutoModel.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["MultiTaskModel"], done.stderr
