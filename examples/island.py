"""A day on an island: a hundred villagers, each with a mind of its own, all of them in one batch of a small model.

    recipes/stories.sh stories.txt runs/stories       # once: a model that knows stories, in some minutes
    python examples/island.py --model runs/stories
    python examples/island.py --model runs/stories --villagers 30 --hours 4 --seed 7 --scenes 0

Any model that knows the English of TinyStories will do: a run folder, llama2.c's stories15M.bin, a GGUF.

A villager has a name, a mood, a place, and memories: what others have said to them. A mind is a slot in the cache of
one decoder; it holds the villager's own small story, and what happens to the villager is read into it. Every hour the
villagers walk, those who meet talk, and those who are alone wish for something. Whoever has something to say in that
hour says it in the same batch: one pass over the weights makes the next token of every sentence. The frame of the
stories is written here; all that the villagers say, want and feel is how the model goes on. The same seed gives the
same day.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from chronicle import Memory, Scene, Villager, evening, worth_telling
from minds import Minds

import llmpy
from llmpy import kernels, progress
from llmpy.errors import UserError
from llmpy.precision import resolve

GIRLS, BOYS = (
    names.split()
    for names in (
        "Lily Mia Anna Lucy Sarah Jane Sara Sue Daisy Molly Jill Lila Sally Mary Amy Jen Grace Emma Kitty Jenny Elly "
        "Emily Sandy Susie Bella Cindy Polly Rosie Lisa Joy Lola Ella Sophie Lulu Luna June Kate Rose Alice May Chloe "
        "Julie Maddy Claire Ann Millie Becky Rachel Nora Ruby",
        "Ben Tom Timmy Jack Tim Sam Max John Bob Joe Billy Tommy Andy Benny Jake Jimmy Jim James Sammy Dave Alex Danny "
        "Henry Pete Bobby Frank Peter Gary Jerry Leo George Joey Rex Mark Teddy Bill Ted Fred Charlie Mike Toby Oliver "
        "Will Nick Harry Dan Luke Roy Carl Paul",
    )
)
NAMES = [name for pair in zip(GIRLS, BOYS, strict=True) for name in pair]
HOMES = ("", " of the Hill", " of the Bay", " of the Mill", " of the Woods", " of the Harbour")  # more of the same name
PLACES = ("in the park", "in the garden", "in the forest", "at the beach", "near the pond", "on the farm",
          "at the market", "by the river", "in the kitchen", "at the playground")  # fmt: skip
MOODS = ("happy", "sad", "excited", "scared", "proud", "curious", "angry", "tired", "lonely", "brave", "shy", "worried",
         "surprised")  # fmt: skip
OTHER_WORDS = {"better": "happy", "glad": "happy", "safe": "happy", "good": "happy", "bad": "sad", "sorry": "sad"}
FIRST_HOUR = 7
SENTENCE_TOKENS, FEELING_TOKENS = 40, 12
TRIES = 3  # for a sentence that comes to an end
QUOTE, FULL_STOP = '"', "."


class Island:
    """The villagers and their day. All chance is drawn from the seed."""

    def __init__(self, minds: Minds, villagers: int, seed: int) -> None:
        self.minds, self.random = minds, random.Random(seed)
        self.villagers = [
            Villager(
                number=i,
                name=NAMES[i % len(NAMES)],
                surname=HOMES[i // len(NAMES)],
                pronoun="She" if i % 2 == 0 else "He",
                mood=self.random.choice(MOODS[:6]),
                place=self.random.choice(PLACES),
            )
            for i in range(villagers)
        ]

    def hour(self, hour: int, advance: Callable[[], None]) -> list[Scene]:
        """All that happens in an hour, in three waves: speaking and wishing, answering, feeling."""
        part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
        meetings, alone = self._walk()
        scenes: list[Scene] = []
        for pair in meetings:
            scenes.append(self._meeting(part, *pair))
        for villager in alone:
            scenes.append(Scene([villager], villager.place, [villager.mood], None))
            end = f" One {part}, {villager.name} was alone {villager.place}. {villager.pronoun} wanted to"
            self._begin(villager, end)
        first = self._say({s.who[0].number: QUOTE if len(s.who) == 2 else FULL_STOP for s in scenes})
        advance()

        talks = [scene for scene in scenes if len(scene.who) == 2 and first[scene.who[0].number]]
        for scene in talks:
            speaker, listener = scene.who
            heard = f' {speaker.name} said, "{first[speaker.number]}" {listener.name} said, "'
            self._begin(listener, f" One {part}, {listener.name} met {speaker.name} {scene.place}.{heard}")
        answers = self._say({scene.who[1].number: QUOTE for scene in talks})
        advance()

        talks = [scene for scene in talks if answers[scene.who[1].number]]
        for scene in talks:
            speaker, listener = scene.who
            scene.lines = [first[speaker.number], answers[listener.number]]
            self.minds.hear(speaker.number, f' {listener.name} said, "{scene.lines[1]}" {speaker.name} felt')
            self.minds.hear(listener.number, f" {listener.name} felt")
        self._feel([villager for scene in talks for villager in scene.who])
        for scene in talks:
            self._remember(scene)
        for scene in scenes:
            if len(scene.who) == 1 and first[scene.who[0].number]:
                scene.lines = [first[scene.who[0].number]]
        advance()
        return [scene for scene in scenes if scene.lines]

    def _walk(self) -> tuple[list[list[Villager]], list[Villager]]:
        """Everybody goes somewhere: some stay, some look for a friend. Who meets whom, and who is alone."""
        for villager in self.villagers:
            if self.random.random() < 0.6:
                friend = villager.friends.most_common(1)
                seek = friend and self.random.random() < 0.3
                villager.place = self.villagers[friend[0][0]].place if seek else self.random.choice(PLACES)
        meetings: list[list[Villager]] = []
        alone: list[Villager] = []
        for place in PLACES:
            here = [villager for villager in self.villagers if villager.place == place]
            self.random.shuffle(here)
            while len(here) > 1 and self.random.random() < 0.95:
                pair = [here.pop(), here.pop()]
                alike = pair[0].name == pair[1].name
                (alone.extend if alike else meetings.append)(pair)  # one's own name confuses a small mind
            alone += here
        return meetings, alone

    def _meeting(self, part: str, speaker: Villager, listener: Villager) -> Scene:
        others = [memory for memory in speaker.memories[-1:] if memory.speaker != listener.name]
        place, moods = speaker.place, [speaker.mood, listener.mood]
        self._begin(speaker, f' One {part}, {speaker.name} met {listener.name} {place}. {speaker.name} said, "')
        return Scene([speaker, listener], place, moods, others[0] if others else None)

    def _begin(self, villager: Villager, end: str) -> None:
        """The story of the villager up to here, with as many memories as there is room for."""
        for memories in (2, 1, 0):
            text = villager.story(memories) + end
            if self.minds.room(text) >= 2 * SENTENCE_TOKENS + 4 * FEELING_TOKENS:  # for what is said, heard and felt
                break
        self.minds.begin(villager.number, text)

    def _say(self, stops: Mapping[int, str]) -> dict[int, str]:
        """What they say, and what those wish for whose story stops at a full stop; "" for who finds no words."""
        found = dict.fromkeys(stops, "")
        for _ in range(TRIES):
            silent = {mind: stop for mind, stop in stops.items() if not found[mind]}
            for mind, text in self.minds.speak(silent, SENTENCE_TOKENS).items():
                found[mind] = (clean_speech if stops[mind] == QUOTE else clean_wish)(text)
        return found

    def _feel(self, villagers: list[Villager]) -> None:
        feelings = self.minds.speak({villager.number: FULL_STOP for villager in villagers}, FEELING_TOKENS)
        for villager in villagers:
            words = re.findall(r"[a-z]+", feelings[villager.number])
            moods = (OTHER_WORDS.get(word, word) for word in words)
            villager.mood = next((mood for mood in moods if mood in MOODS), villager.mood)

    def _remember(self, scene: Scene) -> None:
        """Each keeps what the other said."""
        for listener, speaker, sentence in zip(scene.who, reversed(scene.who), reversed(scene.lines), strict=True):
            listener.memories.append(Memory(speaker.name, sentence))
            listener.friends[speaker.number] += 1


def clean_speech(text: str) -> str:
    """A sentence that can stand between quotation marks; "" for what is none."""
    text = " ".join(text.split())
    words = len(text.split())
    return text if 2 <= words <= 24 and text[-1] in ".!?" and text[0].isupper() and "<" not in text else ""


def clean_wish(text: str) -> str:
    text = text.strip()
    return text if 2 <= len(text.split()) <= 16 and not re.search(r'["\n<]', text) and text[0].islower() else ""


def one_by_one(island: Island, few: int) -> float:
    """Tokens a second where the same minds answer one after the other."""
    minds = island.minds
    made, seconds = minds.tokens_made, minds.seconds
    for villager in island.villagers[:few]:
        island._begin(villager, f' {villager.name} said, "')
        minds.speak({villager.number: QUOTE}, SENTENCE_TOKENS)
    return (minds.tokens_made - made) / (minds.seconds - seconds)


def tell(island: Island, hours: int, scenes_an_hour: int) -> None:
    """The day, hour by hour, on stdout."""
    told: set[str] = set()
    day: list[Scene] = []
    for hour in range(FIRST_HOUR, FIRST_HOUR + hours):
        with progress.bar(f"{hour}:00", 3, "waves") as bar:
            scenes = island.hour(hour, bar.advance)
        day += scenes
        print(f"\n== {hour}:00 ==")
        chosen = worth_telling(scenes, scenes_an_hour, told)
        for scene in chosen:
            print(f"\n{scene.text()}")
        if others := len(scenes) - len(chosen):
            print(f"\n... and {others} other scenes, all over the island.")
        sys.stdout.flush()
    print(f"\n== Night ==\n\n{evening(island.villagers, day)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/stories", metavar="PATH", help="any model (default runs/stories)")
    parser.add_argument("--villagers", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument("--hours", type=int, default=8, metavar="H", help=f"from {FIRST_HOUR} o'clock on (default 8)")
    parser.add_argument("--scenes", type=int, default=3, metavar="N", help="told of each hour; 0: all (default 3)")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="another day (default 42)")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="float32, bfloat16 or auto (default)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (the default) or reference")
    args = parser.parse_args(arguments)
    limits = {"villagers": (2, len(NAMES) * len(HOMES)), "hours": (1, 24 - FIRST_HOUR), "scenes": (0, 10**6)}
    for name, (low, high) in limits.items():
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} must be from {low} to {high}, not {getattr(args, name)}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    model = llmpy.load(args.model)
    precision = resolve(args.precision, args.device)
    kernels.start(args.device, precision=precision)
    island = Island(Minds(model, args.villagers, args.seed, args.device, precision), args.villagers, args.seed)
    minds = island.minds
    print(f"A DAY ON THE ISLAND\n{args.villagers} villagers, {args.hours} hours, seed {args.seed}")
    tell(island, args.hours, args.scenes)
    made, seconds = minds.tokens_made, minds.seconds
    alone = one_by_one(island, 4)
    print(
        f"\n{made:,} tokens in {seconds:.1f} s: {made / seconds:,.0f} tokens/s in total, reading included.\n"
        f"One villager after the other says {alone:,.0f} tokens/s: {made / seconds / alone:.1f} times as fast together."
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"island.py: error: {error}")
