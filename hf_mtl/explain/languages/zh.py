"""Chinese."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_mtl.explain.languages.base import Change, Language, TargetName, number, percent, target_name

if TYPE_CHECKING:
    from hf_mtl.explain.explanation import Explanation

_WAYS = {"delete": "删除", "mask": "遮盖"}
_ORDINALS = ("第一", "第二")

# What methods write in English, in the order it is tried; names of methods stay as they are.
_NOTES: tuple[tuple[str, str], ...] = (
    (r"\(none\)", "（无）"),
    (r"the zero vector", "零向量"),
    (r"the embedding of (.+)", r"\1 的嵌入向量"),
    (r"the text without them", "去掉这些词的文本"),
    (r"the mask token in their place", "以掩码符号代替这些词"),
    (r"(.+), word after word", r"\1，逐词进行"),
    (r"(.+) in place of every word", r"以 \1 代替每个词"),
    (
        r"after (\d+) steps the scores still miss the sum they promise by (.+)",
        r"\1 步之后，各词分数之和与应有之和仍相差 \2",
    ),
    (
        r"attention is routing, not attribution: it tells where the model reads, not what it makes of it",
        "注意力只是信息的去向，不是归因：它说明模型读了哪里，而不是从中得出了什么",
    ),
    (
        r"gradient x input is offered for comparison: on transformers it can be worse than a random choice of words",
        "“梯度×输入”仅供对照：在这类模型上，它可能比随机挑选词语还差",
    ),
    (r"(\w+) does not cover this model \((.+)\): (\w+) took its place", r"\1 不适用于此模型，改用 \3"),
    (
        r"context barely matters: (.+) of the attribution lies outside the target itself",
        r"上下文几乎没有影响：只有 \1 的归因落在目标之外",
    ),
)


class Chinese(Language):
    """Chinese sentences.

    Example:
        >>> change = Change("positive", "3%", {"delete": "61%", "mask": "55%"}, rises=True)
        >>> words = [Chinese().word(word) for word in ("dull", "mess")]
        >>> Chinese().carried(words, change, Chinese().becomes(None), decides=True, target=None)
        '“dull”和“mess”决定了这一结果：去掉它们后，positive从3%升至61%（删除）或55%（遮盖），成为答案。'
    """

    supports = "支持"
    opposes = "反对"
    matters = "重要"
    target_itself = "目标本身"
    value = "预测值"

    def text_name(self, part: int) -> str:
        return f"{_ORDINALS[part]}段文本"

    def word(self, word: str, *, part: int | None = None, occurrence: int | None = None) -> str:
        places = [] if part is None else [f"{_ORDINALS[part]}段文本"]
        places += [] if occurrence is None else [f"第{occurrence}处"]
        return f"“{word}”" + (f"（{'，'.join(places)}）" if places else "")

    def listed(self, items: Sequence[str]) -> str:
        return "和".join(["、".join(items[:-1]), items[-1]] if len(items) > 1 else items)

    def against(self, label: str, over: str) -> str:
        return f"{label}（仅与{over}相比）"

    def target(self, name: TargetName) -> str:
        label = self.value if name.label == "value" and name.over is None else name.label
        over = "第二名" if name.over == "runner-up" else name.over
        label = label if over is None else f"{label}而非{over}"
        return label if name.span is None else f"“{name.span}”为{label}"

    def note(self, note: str) -> str:
        for pattern, said in _NOTES:
            found = re.fullmatch(pattern, note)
            if found:
                parts = {f"\\{place}": self.note(part) for place, part in enumerate(found.groups(), start=1)}
                return re.sub(r"\\\d", lambda place, parts=parts: parts[place[0]], said)
        return note

    def line(self, name: str, value: str) -> str:
        return f"{name}：{value}"

    def explained(self, explanation: Explanation) -> str:
        if explanation.measure == "value":
            return f"解释对象：{self.value}，{number(explanation.probability)}"
        return f"解释对象：{self.target(target_name(explanation))}，概率{percent(explanation.probability)}"

    def method_line(self, explanation: Explanation) -> str:
        parts = [f"方法：{explanation.method}"]
        parts += [f"对照：{self.note(explanation.baseline)}"] if explanation.baseline else []
        parts += [f"随机种子：{explanation.seed}"] if explanation.seed is not None else []
        if explanation.convergence is not None:
            parts.append(f"各词分数之和与应有之和相差{explanation.convergence:.1%}")
        return "；".join(parts)

    def carried(self, words: Sequence[str], change: Change, outcome: str, *, decides: bool, target: str | None) -> str:
        said = f"支持{target}" if target else "决定了这一结果" if decides else "支持这一结果"
        return f"{self.listed(words)}{said}：去掉{_them(words)}后，{_said(change)}{outcome}。"

    def alone(self, word: str, change: Change, outcome: str) -> str:
        return f"单独来看{word}：去掉它后，{_said(change)}{outcome}。"

    def opposed(self, words: Sequence[str], change: Change, *, target: str | None) -> str:
        return f"{self.listed(words)}反对{target or '这一结果'}：去掉{_them(words)}后，{_said(change)}。"

    def moved(self, words: Sequence[str], change: Change) -> str:
        said = "拉低" if change.rises else "推高"
        return f"{self.listed(words)}{said}了{self.value}：去掉{_them(words)}后，{_said(change)}。"

    def own(self, words: str, change: Change, outcome: str, *, barely: bool) -> str:
        return f"{words}本身{'几乎没有影响' if barely else '有影响'}：遮盖后，{_said(change)}{outcome}。"

    def context(self, change: Change, outcome: str, *, barely: bool) -> str:
        return f"上下文{'几乎没有影响' if barely else '有影响'}：去掉其余所有词后，{_said(change)}{outcome}。"

    def becomes(self, answer: str | None) -> str:
        return f"，答案变为{answer}" if answer else "，成为答案"

    def ceases(self) -> str:
        return "，不再是答案"

    def overtakes(self, label: str) -> str:
        return f"，{label}反超"

    def unsure(self, first: tuple[str, str], second: tuple[str, str] | None) -> str:
        rest = "" if second is None else f"，{second[0]}的概率为{second[1]}"
        return f"模型并不确定：{first[0]}的概率为{first[1]}{rest}。"

    def nothing(self, ways: Sequence[str]) -> str:
        agree = "在两种去除方式下" if len(ways) > 1 else ""
        return f"对单个词语无话可说：没有哪个词的实测影响{agree}足够大。"

    def checked(self, ways: Sequence[str], least: float, *, points: bool) -> str:
        shown = "，".join(f"{_WAYS[way]}一次" for way in ways)
        small = f"{100 * least:.0f}个百分点" if points else number(least)
        return f"每句关于词语的说法都经过检验，即去掉这些词后重新测量（{shown}）；小于{small}的变化不予说明。"


def _them(words: Sequence[str]) -> str:
    return "它们" if len(words) > 1 else "它"


def _said(change: Change) -> str:
    verb = {True: "升至", False: "降至", None: "变为"}[change.rises]
    ways = "或".join(f"{value}（{_WAYS[way]}）" if way else value for way, value in change.after.items())
    return f"{change.of}从{change.before}{verb}{ways}"


LANGUAGE = Chinese()
