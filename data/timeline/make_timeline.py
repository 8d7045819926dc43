"""Sports commentary and its timeline as JSON, made from the phrases of commentary.toml; standard library only.

    python data/timeline/make_timeline.py                    # the 536 pairs of this folder, to the byte
    python data/timeline/make_timeline.py --pairs 20000      # more of the same kind, in data/timeline-20000

A row has ``game``, ``category`` and ``messages`` (system, commentary, JSON). Training and validation rows, and test
rows of the category "seen", use only what commentary.toml lists as seen. In each other category of test rows one thing
stands in no training row: "new league" (with its teams and players), "new phrasing", "new clock", "new game". Every
row is drawn from a generator of its own, seeded by (seed, split, number): the rows of a small set are the first of a
large one, and the same in every version of Python.
"""

import argparse
import json
import random
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
DEFAULT_PAIRS, MIN_PAIRS = 536, 200
CATEGORIES = ("seen", "new league", "new phrasing", "new clock", "new game")
#: Share of timelines with one event, two, ...
LENGTHS = (0.36, 0.36, 0.19, 0.09)
WORDS = ("", "first", "second", "third", "fourth", "fifth")

Phrases = Mapping[str, Any]
T = TypeVar("T")


class Draw:
    """Random choices by ``random()`` alone, the one method whose values Python promises to keep."""

    def __init__(self, *seed: object) -> None:
        self.share = random.Random("/".join(map(str, seed))).random

    def below(self, limit: int) -> int:
        """A whole number from 0 to ``limit`` - 1."""
        return int(self.share() * limit)

    def one(self, values: Sequence[T]) -> T:
        """One of ``values``."""
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """``count`` of ``values``, none twice, in random order."""
        order = sorted((self.share(), number) for number in range(len(values)))
        return [values[number] for _, number in order[:count]]


@dataclass(frozen=True)
class Row:
    """One pair: what is written to a file, and what it was made of."""

    game: str
    category: str
    league: str
    commentary: str
    timeline: Sequence[Mapping[str, str]]

    def line(self, system: str) -> str:
        """The row of JSON Lines, with its newline."""
        answer = json.dumps({"timeline": self.timeline}, separators=(",", ":"))
        turns = [("system", system), ("user", self.commentary), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns]
        return json.dumps({"game": self.game, "category": self.category, "messages": messages}) + "\n"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{('th', 'st', 'nd', 'rd')[number % 10] if number % 10 < 4 else 'th'}"


def clock_fields(game: Phrases, progress: float, lead: float) -> dict[str, object]:
    """What a clock format of ``game`` may name when the share ``progress`` of the match is over.

    ``lead`` is the share of the points of a set that the first side makes.
    """
    periods, length = game.get("periods", 1), game["length"]
    period = int(progress * periods) + 1
    within = progress * periods % 1  # of the period
    seconds = int(within * length * 60)
    if game["clock"] == "down":
        seconds = length * 60 - 1 - seconds
    minute, second = divmod(seconds, 60)
    if game["clock"] == "minutes":  # people count them from one
        minute += 1
    points = int(within * (2 * length - 3))  # of both sides; the set is not over
    first = min(length - 1, round(points * lead))
    late = game.get("has_stoppage_time", False) and progress > 0.95
    ball = int(within * length * 6) % 6 + 1
    return {
        "minute": f"{length}+{1 + int((progress - 0.95) * 120)}" if late else minute,
        "minute2": f"{minute:02}",
        "second": f"{second:02}",
        "ordinal": ordinal(minute),
        "period": period,
        "period_ordinal": ordinal(period),
        "period_word": WORDS[period],
        "over": int(within * length),
        "ball": ball,
        "score": f"{first}-{min(length - 1, points - first)}",
    }


class Writer:
    """Writes rows out of the phrases; ``rows`` gives a split."""

    def __init__(self, phrases: Phrases, seed: int) -> None:
        self.phrases = phrases
        self.seed = seed
        games: Mapping[str, Phrases] = phrases["games"]
        self.games = {
            is_held: [name for name, game in games.items() if game.get("is_held", False) == is_held]
            for is_held in (False, True)
        }

    def rows(self, split: str, count: int, categories: Sequence[str], taken: set[str]) -> list[Row]:
        """``count`` rows, the categories in turn, with no commentary out of ``taken`` (which grows)."""
        made: list[Row] = []
        for number in range(count):
            for again in range(1000):
                row = self.row(Draw(self.seed, split, number, again), categories[number % len(categories)])
                if row.commentary not in taken:
                    break
            else:
                raise SystemExit(f"error: no new commentary for row {number} of {split}: write more phrases")
            taken.add(row.commentary)
            made.append(row)
        return made

    def row(self, draw: Draw, category: str) -> Row:
        """One match: an opening, events in order, and sentences between them that are none."""
        title = draw.one(self.games[category == "new game"])
        game: Phrases = self.phrases["games"][title]
        which = "held" if category == "new phrasing" else "seen"
        pool = "held" if category == "new league" else "seen"
        league = draw.one(game["leagues"][pool])
        team, rival = draw.some(self.teams(league, pool), 2)
        players: list[str] = []
        while len(players) < 6:
            name = self.name(draw, pool)
            players += [name] if name not in players else []
        sides = {"team": team, "rival": rival, "league": league}

        sentences, timeline = self.events(draw, game, category, sides, players)
        for noise in draw.some(self.phrases["noise"][which], draw.one((0, 0, 1, 1, 2))):
            sentence = noise.format(number=2 + draw.below(28), mate=draw.one(players), **sides)
            sentences.insert(draw.below(len(sentences) + 1), sentence)
        if draw.share() < 0.6:
            sentences.insert(0, draw.one(self.phrases["intros"][which]).format(**sides))
        return Row(title, category, league, draw.one((" ", " ", " ", "\n")).join(sentences), timeline)

    def events(
        self, draw: Draw, game: Phrases, category: str, sides: Mapping[str, str], players: Sequence[str]
    ) -> tuple[list[str], list[dict[str, str]]]:
        """The sentences of a match's events and their timeline. One clock format and one frame serve a whole row."""
        which = "held" if category == "new phrasing" else "seen"
        clock = draw.one(game["clocks"]["held" if category == "new clock" else "seen"])
        frame: Sequence[str] = draw.one(self.phrases["frames"][which])
        size, share = 1, draw.share()
        while share >= sum(LENGTHS[:size]) and size < len(LENGTHS):
            size += 1
        lead = 0.35 + 0.3 * draw.share()
        sentences: list[str] = []
        timeline: list[dict[str, str]] = []
        told: set[str] = set()
        for progress in sorted(draw.share() for _ in range(size)):
            if category == "new clock":
                progress *= 0.95  # stoppage time has one form
            ts = clock.format(**clock_fields(game, progress, lead))
            kind = draw.one(list(game["events"]))
            phrase = fresh(draw, game["events"][kind][which], told)
            who, mate = draw.some(players, 2)
            play = phrase.format(who=who, mate=mate, **sides)
            sentiment = draw.one(list(self.phrases["fans"]))
            is_told = sentiment != "neutral" or draw.share() < 0.4
            fans = fresh(draw, self.phrases["fans"][sentiment][which], told) if is_told else ""
            values = {"clock": ts, "play": play, "Play": capital(play), "fans": fans, "Fans": capital(fans)}
            sentences.append(frame[0 if is_told else 1].format(**values))
            about = who if "{who}" in phrase else sides["team"]
            timeline.append({"ts": ts, "event": f"{kind}, {about}", "fan_sentiment": sentiment})
        return sentences, timeline

    def teams(self, league: str, pool: str) -> list[str]:
        """The eight teams of a league, always the same."""
        draw = Draw(self.seed, "league", league)
        return [self.name(draw, pool) + draw.one(self.phrases["clubs"][pool]) for _ in range(8)]

    def name(self, draw: Draw, pool: str) -> str:
        """An invented name out of two parts."""
        parts = self.phrases["names"][pool]
        return draw.one(parts["starts"]) + draw.one(parts["ends"])


def fresh(draw: Draw, phrases: Sequence[str], told: set[str]) -> str:
    """One of ``phrases`` that is not in ``told``, while there are any; it is added."""
    phrase = draw.one([phrase for phrase in phrases if phrase not in told] or phrases)
    told.add(phrase)
    return phrase


def capital(text: str) -> str:
    """``text`` with a capital at its start."""
    return text[:1].upper() + text[1:]


def sizes(pairs: int) -> dict[str, int]:
    """How many rows each split has: 395, 16 and 125 of 536; at most 200 for validation and 1,000 for the test."""
    valid, test = max(16, min(200, pairs // 40)), max(125, min(1000, pairs // 20))
    return {"train": pairs - valid - test, "valid": valid, "test": test}


def make(phrases: Phrases, pairs: int, seed: int) -> dict[str, list[Row]]:
    """The rows of each split; no commentary occurs twice."""
    writer, count, taken = Writer(phrases, seed), sizes(pairs), set[str]()
    made = {
        split: writer.rows(split, count[split], CATEGORIES if split == "test" else CATEGORIES[:1], taken)
        for split in ("test", "valid", "train")
    }
    return {split: made[split] for split in ("train", "valid", "test")}


def main(arguments: Sequence[str], say: Callable[[str], object] = sys.stderr.write) -> None:
    """Write train.jsonl, valid.jsonl and test.jsonl; files with other content are kept unless --force is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=DEFAULT_PAIRS, help=f"rows of all three files ({DEFAULT_PAIRS})")
    parser.add_argument("--seed", type=int, default=7, help="other rows of the same kind (7)")
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--force", action="store_true", help="replace files with other content")
    given = parser.parse_args(arguments)
    if given.pairs < MIN_PAIRS:
        parser.error(f"--pairs must be at least {MIN_PAIRS}: 141 of them are validation and test rows")
    folder = given.out or (HERE if given.pairs == DEFAULT_PAIRS else HERE.parent / f"timeline-{given.pairs}")
    phrases = tomllib.loads((HERE / "commentary.toml").read_text("utf-8"))
    made = make(phrases, given.pairs, given.seed)
    texts = {
        folder / f"{split}.jsonl": "".join(row.line(phrases["system"]) for row in rows) for split, rows in made.items()
    }
    other = [str(path) for path, text in texts.items() if path.exists() and path.read_text("utf-8") != text]
    if other and not given.force:
        parser.error(
            f"{', '.join(other)}: there already, with other content; --force replaces it, --out writes elsewhere"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, "utf-8", newline="\n")
    say(f"{', '.join(f'{len(rows):,} {split}' for split, rows in made.items())} rows in {folder}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
