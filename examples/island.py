"""A day on an island: a hundred villagers, each with a mind of its own, all of them in one batch of a small model.

    recipes/stories.sh stories.txt runs/stories       # once: a model that knows stories, in some minutes
    python examples/island.py --model runs/stories
    python examples/island.py --model runs/stories --villagers 30 --hours 4 --seed 7 --scenes 0

Any model that knows the English of TinyStories will do: a run folder, llama2.c's stories15M.bin, a GGUF.

A villager has a name, a mood, a place, and memories: what others have said to them. A mind is a slot in the cache of
one decoder; it holds the villager's own small story, and what happens to the villager is read into it. Every hour the
villagers walk, those who meet talk, and those who are alone wish for something. Whoever speaks just then is in the
same batch: one pass over the weights makes the next token of every sentence, and a sentence that is said lets the
answer in. The frame of the stories is written here; all that the villagers say, want and feel is the model's own text.
The same seed gives the same day.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Generator, Sequence

from chronicle import Memory, Scene, Villager, evening, worth_telling
from minds import Minds, Tale, Wish

import llmpy
from llmpy import kernels
from llmpy.errors import UserError
from llmpy.models.precision import resolve
from llmpy.utils import progress_bar

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
        """Plays one hour and returns its scenes; calls `advance` as each scene ends."""
        part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
        meetings, alone = self._walk()
        scenes = [self._scene(*pair) for pair in meetings] + [self._scene(villager) for villager in alone]
        self.minds.live(self._tale(scene, part, advance) for scene in scenes)
        return [scene for scene in scenes if scene.lines]

    def _tale(self, scene: Scene, part: str, advance: Callable[[], None]) -> Tale:
        yield from self._talk(scene, part) if len(scene.who) == 2 else self._wish(scene, part)
        advance()

    def _wish(self, scene: Scene, part: str) -> Tale:
        """Somebody is alone and wants something."""
        [one] = scene.who
        self._begin(one, f" One {part}, {one.name} was alone {scene.place}. {one.pronoun} wanted to")
        if wish := (yield from self._say(one, FULL_STOP, clean_wish)):
            scene.lines = [wish]

    def _talk(self, scene: Scene, part: str) -> Tale:
        """One speaks, the other answers; each hears the other, feels something, and remembers."""
        speaker, listener = scene.who
        self._begin(speaker, f' One {part}, {speaker.name} met {listener.name} {scene.place}. {speaker.name} said, "')
        if not (said := (yield from self._say(speaker, QUOTE, clean_speech))):
            return
        heard = f'{speaker.name} said, "{said}" {listener.name} said, "'
        self._begin(listener, f" One {part}, {listener.name} met {speaker.name} {scene.place}. {heard}")
        if not (answer := (yield from self._say(listener, QUOTE, clean_speech))):
            return
        self.minds.hear(speaker.number, f' {listener.name} said, "{answer}" {speaker.name} felt')
        self.minds.hear(listener.number, f" {listener.name} felt")
        for villager in scene.who:
            feeling = yield Wish(villager.number, FULL_STOP, FEELING_TOKENS)
            moods = (OTHER_WORDS.get(word, word) for word in re.findall(r"[a-z]+", feeling))
            villager.mood = next((mood for mood in moods if mood in MOODS), villager.mood)
        scene.lines = [said, answer]
        self._remember(scene)

    def _say(self, villager: Villager, stop: str, clean: Callable[[str], str]) -> Generator[Wish, str, str]:
        """A sentence that comes to an end; "" for who finds no words."""
        for _ in range(TRIES):
            text = yield Wish(villager.number, stop, SENTENCE_TOKENS)
            if sentence := clean(text):
                return sentence
        return ""

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

    def _scene(self, first: Villager, second: Villager | None = None) -> Scene:
        who = [first] if second is None else [first, second]
        memory = first.memories[-1] if first.memories and second else None
        if memory and second and memory.speaker == second.name:
            memory = None
        return Scene(who, first.place, [villager.mood for villager in who], memory)

    def _begin(self, villager: Villager, end: str) -> None:
        """The story of the villager up to here, with as many memories as there is room for."""
        for memories in (2, 1, 0):
            text = villager.story(memories) + end
            if self.minds.room(text) >= 2 * SENTENCE_TOKENS + 4 * FEELING_TOKENS:  # for what is said, heard and felt
                break
        self.minds.begin(villager.number, text)

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
    """Tokens a second where a few talks are held one after the other."""
    minds, villagers = island.minds, island.villagers
    tokens, seconds = minds.tokens, minds.seconds
    for pair in zip(villagers[:few], villagers[-few:], strict=True):
        minds.live([island._talk(island._scene(*pair), "evening")])
    return (minds.tokens - tokens) / (minds.seconds - seconds)


def tell(island: Island, hours: int, scenes_an_hour: int) -> None:
    """The day, hour by hour, on stdout."""
    told: set[str] = set()
    day: list[Scene] = []
    for hour in range(FIRST_HOUR, FIRST_HOUR + hours):
        with progress_bar.bar(f"{hour}:00", None, "scenes") as bar:
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
    said, heard, seconds = minds.tokens_made, minds.tokens_read, minds.seconds
    rate, alone = minds.tokens / seconds, one_by_one(island, min(4, args.villagers))
    print(
        f"\n{said:,} tokens said and {heard:,} heard in {seconds:.1f} s: {rate:,.0f} tokens/s in total.\n"
        f"In talks one after the other, {alone:,.0f} tokens/s: {rate / alone:.1f} times as fast together."
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"island.py: error: {error}")
