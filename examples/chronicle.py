"""Parts of the island's chronicle: villagers, the scenes they are in, and the sentences that tell them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

# Words that say nothing of what somebody talks about.
COMMON = re.compile(
    r"(the|an?|and|to|you|i|it|is|was|we|can|that|of|in|on|for|me|my|your|are|do|not|but|so|with|s?he|they|be|have|will"
    r"|this|what|go|want|yes|no|let|s|t|m|re|ll|don|like|too|very|her|his|at|up|oh|see|here|there|if|all|them|am)"
)


@dataclass
class Memory:
    speaker: str
    sentence: str


@dataclass
class Villager:
    number: int  # of the mind
    name: str
    surname: str
    pronoun: str
    mood: str
    place: str
    memories: list[Memory] = field(default_factory=list)
    friends: Counter[int] = field(default_factory=Counter)

    @property
    def full_name(self) -> str:
        return self.name + self.surname

    def story(self, memories: int) -> str:
        """Returns the opening of this villager's story, with the given number of newest memories."""
        child, her = ("girl", "her") if self.pronoun == "She" else ("boy", "him")
        text = f"Once upon a time, there was a little {child} named {self.name}. {self.pronoun} was {self.mood}."
        for memory in self.memories[-memories:] if memories else ():
            text += f' {memory.speaker} said to {her}, "{memory.sentence}"'
        return text


@dataclass
class Scene:
    """One hour of one villager, or of two who meet."""

    who: list[Villager]
    place: str
    moods: list[str]  # before
    remembered: Memory | None
    lines: list[str] = field(default_factory=list)  # what was said, or wished for

    def text(self) -> str:
        """A paragraph of the chronicle."""
        first = self.who[0]
        if len(self.who) == 1:
            return f"{first.full_name} was alone {self.place}. {first.pronoun} wanted to {self.lines[0]}."
        second, moods = self.who[1], self.moods
        both = (
            f"Both were {moods[0]}"
            if moods[0] == moods[1]
            else f"{first.name} was {moods[0]}, {second.name} {moods[1]}"
        )
        text = f"{first.full_name} met {second.full_name} {self.place}. {both}."
        if memory := self.remembered:
            text += f' {first.name} thought of what {memory.speaker} had said: "{memory.sentence}"'
        text += "".join(f"\n    {spoken(*line)}" for line in zip(self.lines, self.who, strict=True))
        changed = [(v, v.mood) for v, mood in zip(self.who, self.moods, strict=True) if v.mood != mood]
        if changed:
            text += "\n    " + " ".join(f"{villager.name} felt {mood} now." for villager, mood in changed)
        return text

    def interest(self, told: set[str]) -> int:
        """Do they speak of one thing, and of what was not told yet?"""
        said = [content(line) for line in self.lines]
        before = content(self.remembered.sentence) if self.remembered else set()
        shared = (said[0] & said[-1] if len(said) > 1 else set()) | (said[0] & before)
        return 3 * len(shared) + len(set().union(*said) - told) - len(set().union(*said) & told)


def spoken(sentence: str, villager: Villager) -> str:
    """A sentence and who said it: a full stop gives way to a comma."""
    verb = "asked" if sentence.endswith("?") else "said"
    return (
        f'"{sentence[:-1]}," said {villager.name}.' if sentence[-1] == "." else f'"{sentence}" {verb} {villager.name}.'
    )


def content(text: str) -> set[str]:
    """The words of a sentence that say what it is about."""
    return {word for word in re.findall(r"[a-z]+", text.lower()) if not COMMON.fullmatch(word)}


def worth_telling(scenes: list[Scene], most: int, told: set[str]) -> list[Scene]:
    """The scenes to print: those of most interest, from different places; all if `most` is 0. Their words are told."""
    if not most:
        return scenes
    chosen: list[Scene] = []
    while len(chosen) < most:
        places = {scene.place for scene in chosen}
        if not (left := [scene for scene in scenes if scene.place not in places]):
            break
        chosen.append(max(left, key=lambda scene: scene.interest(told)))
        told |= set().union(*map(content, chosen[-1].lines))
    return chosen


def evening(villagers: list[Villager], scenes: list[Scene]) -> str:
    """Returns the evening's summary of the day."""
    talks = [scene for scene in scenes if len(scene.who) == 2]
    lines = [f"{len(talks)} talks were held, and {len(scenes) - len(talks)} wishes made."]
    words = Counter(word for scene in talks for line in scene.lines for word in content(line))
    names = {villager.name.lower() for villager in villagers}
    if topics := [word for word, _ in words.most_common(40) if word not in names and len(word) > 2][:6]:
        lines.append(f"The island spoke of: {', '.join(topics)}.")
    pairs = Counter(tuple(sorted(villager.number for villager in scene.who)) for scene in talks)
    if pairs and (most := pairs.most_common(1)[0])[1] > 1:
        a, b = (villagers[number].full_name for number in most[0])
        lines.append(f"{a} and {b} met {most[1]} times.")
    heard = Counter(sentence for scene in talks for sentence in scene.lines)
    if heard and (line := heard.most_common(1)[0])[1] > 1:
        lines.append(f'One sentence was on {line[1]} lips: "{line[0]}"')
    moods = Counter(villager.mood for villager in villagers)
    lines.append("They went to bed " + ", ".join(f"{mood} ({count})" for mood, count in moods.most_common(5)) + ".")
    return "\n".join(lines)
