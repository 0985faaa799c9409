"""A saved model loads, answers and serves where the package cannot be imported, and is the same model there."""

from __future__ import annotations

import ast
import copy
import json
import linecache
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from families import FAMILIES, batch, logits_of, new_model
from tiny import write_encoder
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import check_imports, get_imports

import hf_mtl.auto  # as users of the package have it
from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.errors import OutputError, SpecError
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model import remote_code
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.remote_code import CODE_NAME, FILE_NAMES, HANDLER_NAME, flat_source
from hf_mtl.registry import HEADS

PROGRAM = Path(__file__).with_name("without_package.py")
PACKAGE = Path(hf_mtl.auto.__file__).parent
LOADING = ("roberta", "deberta-v2", "distilbert", "modernbert", "mt5", "gpt2", "llama")
SHARING: dict[str, dict[str, Any]] = {
    "modernbert": {"sharing": "soft", "sharing_size": 4},
    "qwen2": {"interaction": "gat", "interaction_graph": {"stars": ["topic"], "slots": ["mood", "stars"]}},
}
"""How the tasks of some of the models share and hear each other."""
GRAPHS = {"bert": [TaskSpec(name="syntax", type="regression", token_graph=True, token_graph_heads=2)]}
"""Tasks that only some of the models have."""
ANSWERING = ("bert", "qwen2", "t5")
ASKED: list[Any] = [
    "fly to new york",
    "the old film was 好电影",
    "",
    "music " * 60,
    {"text": "a lovely story", "text_pair": "a dull one"},
    {"tokens": ["play", "for", "me", "oslo"]},
    {"tokens": ["play", "zebra", "for", "oslo"], "heads": [0, 4, 4, 1]},
    {"tokens": []},
    {"text": "fly " * 60, "text_pair": "to where?", "choices": ["to new york", "oslo", "rome"]},
]
REQUESTS: list[Any] = [
    {"inputs": "fly to oslo"},
    {"inputs": ASKED, "parameters": None},
    {"inputs": {"text": "a", "text_pair": "b"}, "parameters": {"tasks": ["stars"], "batch_size": 2}},
    {"inputs": []},
    {},
    "fly to oslo",
    {"inputs": 5},
    {"inputs": ["good", {"txt": "a"}]},
    {"inputs": "a", "parameters": {"tasks": ["mood", "moon"]}},
    {"inputs": "a", "parameters": {"top_k": 3}},
    {"inputs": "a", "parameters": {"batch_size": 0}},
    {"inputs": "a", "parameters": ["stars"]},
]

OWN_HEAD = '''
"""A head that a user wrote."""
import re
import unused_package_that_nobody_has
import numpy as np
import torch
from hf_mtl import HEADS, TaskSpec
from hf_mtl.model.heads.regression import RegressionHead as Base

# How steep it is.
STEEPNESS = 3.0
_rows = re.compile("[a-z]+")  # a name that stands in the package as well


def squashed(values: torch.Tensor) -> torch.Tensor:
    return torch.tanh(values * STEEPNESS)


@HEADS.register("squashed")
class SquashedHead(Base):
    """Numbers between -1 and 1."""

    def forward(self, features):
        return squashed(super().forward(features))

    @classmethod
    def decode(cls, spec: TaskSpec, logits, words):
        answer = super().decode(spec, logits, words)
        return {**answer, "sign": int(np.sign(answer["value"])), "name": _rows.findall(spec.name)}


def unused():
    return unused_package_that_nobody_has.something
'''


def forget_own_heads() -> None:
    for name in {*HEADS.names()} - {*HEADS.files}:
        del HEADS._members[name]


@pytest.fixture
def heads() -> Iterator[None]:
    """Forget what a test registers."""
    yield
    forget_own_heads()


def own_head(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str = OWN_HEAD, name: str = "own_head") -> Any:
    """Import a user's module."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "unused_package_that_nobody_has", ModuleType("unused"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(name)


def tasks() -> list[TaskSpec]:
    return [
        TaskSpec(name="topic", type="sequence_classification", labels=("world", "sport", "art"), pooling="cls"),
        TaskSpec(name="slots", type="token_classification", labels=("O", "B-city", "I-city")),
        TaskSpec(name="tags", type="token_classification", labels=("NOUN", "VERB"), max_length=24, stride=7),
        TaskSpec(name="mood", type="multi_label_classification", labels=("glad", "sad", "cross", "calm"), stride=3),
        TaskSpec(name="stars", type="regression", pooling="attention"),
        TaskSpec(name="gaps", type="masked_language_modeling"),
        TaskSpec(name="quiz", type="multiple_choice"),
        TaskSpec(
            name="gist",
            type="regression",
            pooling="attention",
            attention_heads=2,
            attention_gate=True,
            layer_mix=True,
        ),
    ]


def write_model(folder: Path, model_type: str, tokenizer: Any, *more: TaskSpec) -> MultiTaskModel:
    """Save a model of every task type with random weights, and inputs for it."""
    torch.manual_seed(0)
    config = FAMILIES[model_type].config(model_type)
    config.vocab_size = len(tokenizer)
    options, graphs = SHARING.get(model_type, {}), GRAPHS.get(model_type, [])
    model = MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=[*tasks(), *more, *graphs], **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("encoder."):
                parameter.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(batch(), folder / "inputs.pt")
    return model


def run(program: list[str], home: Path, **environment: str) -> None:
    variables = {**os.environ, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), **environment}
    done = subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, timeout=300, check=False, env=variables, cwd=home
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What interpreters with and without the package get out of the same folders; one start pays for all tests."""
    root = tmp_path_factory.mktemp("remote")
    tokenizer = AutoTokenizer.from_pretrained(write_encoder(root / "encoder", mask=True))
    tokenizer.model_max_length = 32
    here: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        own_head(root, monkeypatch)
        for model_type in LOADING:
            folder = root / "families" / model_type
            model = new_model(model_type)
            model.save_pretrained(folder)
            torch.save(batch(), folder / "inputs.pt")
            here[str(folder)] = {"logits": logits_of(model, batch())}
        answering = [root / f"answering-{model_type}" for model_type in ANSWERING]
        for folder, model_type in zip(answering, ANSWERING, strict=True):
            model = write_model(folder, model_type, tokenizer, TaskSpec(name="own", type="squashed"))
            pipe = MultiTaskPipeline(model=model, tokenizer=tokenizer)
            here[str(folder)] = {"logits": logits_of(model, batch()), "answers": pipe(ASKED)}
    forget_own_heads()
    job = {
        "logits": list(here),
        "answers": [str(folder) for folder in answering],
        "handled": {str(answering[0]): REQUESTS},
        "asked": ASKED,
        "scratch": str(root / "again"),
        "result": str(root / "result.pt"),
    }
    (root / "job.json").write_text(json.dumps(job))
    run([str(PROGRAM), str(root / "job.json")], root)
    there = torch.load(root / "result.pt")
    return {Path(name).name: (here[name], there[name]) for name in here}


@pytest.mark.parametrize("name", [*LOADING, *(f"answering-{model_type}" for model_type in ANSWERING)])
@pytest.mark.slow
def test_logits_without_the_package_are_the_same_to_the_bit(without: dict[str, Any], name: str) -> None:
    here, there = without[name]
    assert here["logits"].keys() == there["logits"].keys()
    for task, logits in here["logits"].items():
        assert torch.equal(logits, there["logits"][task]), task
    assert there["module"].startswith("transformers_modules.")


@pytest.mark.parametrize("model_type", ANSWERING)
@pytest.mark.slow
def test_the_pipeline_without_the_package_gives_the_same_answers(without: dict[str, Any], model_type: str) -> None:
    here, there = without[f"answering-{model_type}"]
    assert here["answers"] == there["answers"]
    assert here["answers"][0]["own"]["name"] == ["own"]
    assert there["saved again"] == there["answers"]  # what is saved there carries the code on


@pytest.mark.parametrize("model_type", ANSWERING)
@pytest.mark.slow
def test_long_texts_are_read_in_windows_without_the_package(without: dict[str, Any], model_type: str) -> None:
    long = without[f"answering-{model_type}"][1]["answers"][ASKED.index("music " * 60)]
    assert [span["start"] for span in long["tags"]["spans"]] == list(range(0, 360, 6))
    assert max((span["end"] for span in long["slots"]["spans"]), default=0) < 32 * 6  # this task has no stride


@pytest.mark.slow
def test_an_endpoint_gives_the_same_answers(without: dict[str, Any]) -> None:
    here, there = without["answering-bert"]
    one, many, part, none, *_ = there["handled"]
    assert many == json.loads(json.dumps(here["answers"]))
    assert len(one) == 1
    assert one[0].keys() == many[0].keys()
    assert [list(answer) for answer in part] == [["stars"]]
    assert none == []


@pytest.mark.slow
def test_an_endpoint_says_what_is_wrong_with_a_request(without: dict[str, Any]) -> None:
    errors = without["answering-bert"][1]["handled"][4:]
    wanted = [
        r"ValueError: the request has no inputs; send",
        r"ValueError: the request has no inputs; send",
        r"DataError: row 1: 5 is no row; give a text",
        r"DataError: row 2: the row has neither 'text' nor 'tokens'",
        r"SpecError: the model has no task 'moon'; choose from 'topic'",
        r"ValueError: there is no parameter 'top_k'",
        r"ValueError: batch_size is 0",
        r"ValueError: parameters is \['stars'\]",
    ]
    assert len(errors) == len(wanted)
    for error, pattern in zip(errors, wanted, strict=True):
        assert re.match(pattern, error), error


# ---------------------------------------------------------------------- with the package


def test_with_the_package_its_own_classes_are_used_and_nobody_is_asked_to_trust(
    tiny_model: MultiTaskModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(write_encoder(tmp_path / "encoder")).save_pretrained(tmp_path)
    for trust in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        assert type(AutoConfig.from_pretrained(tmp_path, **trust)) is MultiTaskConfig
        assert type(AutoModel.from_pretrained(tmp_path, **trust)) is MultiTaskModel
        assert type(pipeline("multi-task", model=str(tmp_path), **trust)) is MultiTaskPipeline


def test_a_loaded_configuration_does_not_carry_the_code_on(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auto_map"] == {
        "AutoConfig": "modeling_hf_mtl.MultiTaskConfig",
        "AutoModel": "modeling_hf_mtl.MultiTaskModel",
    }
    assert written["custom_pipelines"]["multi-task"]["impl"] == "modeling_hf_mtl.MultiTaskPipeline"
    for config in (tiny_model.config, AutoModel.from_pretrained(tmp_path).config):
        assert not hasattr(config, "auto_map")
        assert not hasattr(config, "custom_pipelines")


def test_the_code_can_be_left_out(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "requirements.txt").write_text("my-own==1.0\n")
    tiny_model.save_pretrained(tmp_path, remote_code=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "requirements.txt"]
    assert "modeling_hf_mtl" not in (tmp_path / "config.json").read_text()
    assert (tmp_path / "requirements.txt").read_text() == "my-own==1.0\n"  # not ours to remove


def test_files_that_users_wrote_are_left_alone(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    (tmp_path / HANDLER_NAME).write_text("class EndpointHandler: ...\n")
    tiny_model.save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / HANDLER_NAME).read_text() == "class EndpointHandler: ...\n"
    assert (tmp_path / CODE_NAME).read_text(encoding="utf-8") == flat_source()


def test_only_the_main_process_writes_the_code(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not any((tmp_path / "other" / name).exists() for name in FILE_NAMES)


def test_a_file_in_place_of_the_folder_is_an_error(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(OutputError, match="it is a file"):
        tiny_model.save_pretrained(tmp_path / "model")


def test_a_model_class_of_a_users_own_is_refused(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    class Changed(MultiTaskModel):
        pass

    model = Changed(copy.deepcopy(tiny_model.config))
    with pytest.raises(SpecError, match=r"the code of Changed does not travel.*remote_code=False"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.save_pretrained(tmp_path / "model", remote_code=False)


# ---------------------------------------------------------------------- the file


def test_the_code_is_the_same_each_time() -> None:
    first = flat_source()
    flat_source.cache_clear()
    remote_code._read.cache_clear()
    assert flat_source() == first


def test_the_code_imports_what_everybody_has_and_the_rest_inside_try(tmp_path: Path) -> None:
    (tmp_path / CODE_NAME).write_text(flat_source(), encoding="utf-8")
    imported = set(get_imports(tmp_path / CODE_NAME))
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers"}
    assert check_imports(tmp_path / CODE_NAME) == []  # and nothing from files beside it
    everywhere = [node for node in ast.walk(ast.parse(flat_source())) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("hf_mtl" in ast.unparse(node) for node in everywhere)


def test_the_code_says_what_the_package_says() -> None:
    """Every definition stands in the package word for word, but for methods left out and imports put inside `try`."""
    written: set[str] = set()
    methods: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            written.add(ast.unparse(node))
            if isinstance(node, ast.ClassDef):
                methods.update(f"{node.name}: {ast.unparse(each)}" for each in node.body)
    definitions = [node for node in ast.parse(flat_source()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(definitions) > 80
    cut: set[str] = set()
    for node in definitions:
        text = ast.unparse(node)
        if text in written or "this model needs the package" in text:
            continue
        assert isinstance(node, ast.ClassDef), node.name
        cut.add(node.name)
        assert all(f"{node.name}: {ast.unparse(each)}" in methods for each in node.body), node.name
    assert cut == {"MultiTaskModel"}  # transformers itself copies the file on when a model is saved there


def test_the_code_holds_every_head_and_adapter() -> None:
    for name in HEADS.files:
        assert f'@HEADS.register("{name}")' in flat_source()


def test_the_code_is_formatted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "120", "--stdin-filename", CODE_NAME, "-"],
        input=flat_source(), capture_output=True, text=True, timeout=60, check=False, cwd=PACKAGE.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_trust_is_never_given_in_the_name_of_the_user() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{path}:{node.value.lineno}"


# ---------------------------------------------------------------------- heads that users registered


def with_head(kind: str, tiny_model: MultiTaskModel) -> MultiTaskModel:
    config = copy.deepcopy(tiny_model.config)
    config.task_specs = [TaskSpec(name="own", type=kind)]
    return MultiTaskModel(config)


def test_the_code_of_a_head_travels_without_what_it_does_not_need(
    heads: None, monkeypatch: pytest.MonkeyPatch, tiny_model: MultiTaskModel, tmp_path: Path
) -> None:
    own_head(tmp_path, monkeypatch)
    with_head("squashed", tiny_model).save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / CODE_NAME).read_text(encoding="utf-8")
    assert "class SquashedHead(RegressionHead):" in text
    assert "# How steep it is.\nSTEEPNESS = 3.0" in text
    assert "_own_head_rows.findall(spec.name)" in text
    assert "unused" not in text


def test_a_head_registered_by_a_call_is_registered_there_too(
    heads: None, monkeypatch: pytest.MonkeyPatch, tiny_model: MultiTaskModel, tmp_path: Path
) -> None:
    source = OWN_HEAD.replace('@HEADS.register("squashed")\n', "") + '\nHEADS.register("called")(SquashedHead)\n'
    own_head(tmp_path, monkeypatch, source, "called_head")
    with_head("called", tiny_model).save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / CODE_NAME).read_text(encoding="utf-8")
    assert text.endswith('\nHEADS.register("called")(SquashedHead)\n')
    compile(text, CODE_NAME, "exec")


def test_a_head_of_a_notebook_travels(heads: None, tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    source = OWN_HEAD.replace("import unused_package_that_nobody_has\n", "").replace("squashed", "in_a_cell")
    notebook = ModuleType("notebook")
    linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(keepends=True), "<cell 1>")
    exec(compile(source, "<cell 1>", "exec"), vars(notebook))
    with_head("in_a_cell", tiny_model).save_pretrained(tmp_path)
    assert "class SquashedHead(RegressionHead):" in (tmp_path / CODE_NAME).read_text(encoding="utf-8")


INSIDE = OWN_HEAD.replace('@HEADS.register("squashed")', "def make():\n  class Inner(Base): pass\n  return Inner\n")
REFUSED: dict[str, tuple[str, str]] = {
    "another package": (
        OWN_HEAD.replace("torch.tanh(", "unused_package_that_nobody_has.tanh("),
        "'unused_package_that_nobody_has' comes from 'unused_package_that_nobody_has'",
    ),
    "the package as a whole": (
        OWN_HEAD.replace("torch.tanh(", "hf_mtl.tanh(").replace("import re\n", "import re\nimport hf_mtl\n"),
        "'hf_mtl' is a module of hf_mtl; import what you need of it",
    ),
    "a name that came by a star": (
        OWN_HEAD.replace("def squashed", "from math import *\ndef squashed").replace("torch.tanh(", "tanh("),
        "'squashed' uses 'tanh', which its file does not define",
    ),
    "a class inside a function": (INSIDE + '\nHEADS.register("squashed")(make())\n', "Inner is defined inside"),
    "an import when it is called": (
        OWN_HEAD.replace("    return torch", "    from hf_mtl.errors import DataError\n    return torch"),
        "'squashed' imports from hf_mtl when it is called",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_whose_code_cannot_travel_is_refused(
    heads: None, monkeypatch: pytest.MonkeyPatch, tiny_model: MultiTaskModel, tmp_path: Path, case: str
) -> None:
    source, problem = REFUSED[case]
    own_head(tmp_path, monkeypatch, source, "refused_" + case.replace(" ", "_"))
    model = with_head("squashed", tiny_model)
    with pytest.raises(SpecError) as caught:
        model.save_pretrained(tmp_path / "model")
    message = str(caught.value)
    assert message.startswith("task type 'squashed': its code cannot travel with the model (")
    assert problem in message
    assert message.endswith("; save with remote_code=False")
    assert not (tmp_path / "model").exists()  # nothing is written
    model.save_pretrained(tmp_path / "model", remote_code=False)
    assert not hasattr(model.config, "auto_map")


def test_a_head_without_source_is_refused(heads: None, tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    exec(OWN_HEAD.replace("import unused_package_that_nobody_has\n", ""), {"__name__": "nowhere"})
    with pytest.raises(SpecError, match=r"'squashed'.*the source of SquashedHead is not to be had.*remote_code=False"):
        with_head("squashed", tiny_model).save_pretrained(tmp_path)
