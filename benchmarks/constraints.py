"""What a JSON Schema costs for each token, and how many answers to it are valid.

    python benchmarks/constraints.py [--model smollm2-135m] [--tokens 64] [--repeats 7] [--prompts 10] [--random 40]

Cost: the same prompt answered freely and held to a schema that fills as many tokens, greedy, in one process, each
repeat in the other order; seconds for each token after the first, by the clock and of the processor, which others on
the machine disturb less. Free generation is ``generate_tokens`` as well.

Validity: real texts (../shared/data) with a request for JSON, answered by the model free and held, greedy and drawn at
temperature 1; and by models of random weights, drawn from their whole distribution, which is the worst case, with the
vocabularies of ../shared/models. An answer that ended is checked with ``scoring.json_schema`` (strict JSON, every
keyword; ``format`` is an annotation and counted on its own); one that ran out of tokens is counted apart.
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mlx_finetune.hardware import blas

if TYPE_CHECKING:
    from mlx_finetune.model.answers.generate import Piece
    from mlx_finetune.model.answers.sampling import Sampling

SHARED = Path(__file__).resolve().parents[2] / "shared"
Schema = Mapping[str, Any]


def closed(properties: Mapping[str, Schema], *optional: str) -> Schema:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [key for key in properties if key not in optional],
        "additionalProperties": False,
    }


TEXT: Schema = {"type": "string", "maxLength": 40}
EVENT = closed({"ts": TEXT, "event": TEXT, "fan_sentiment": TEXT})
TIMELINE = closed({"timeline": {"type": "array", "minItems": 1, "maxItems": 4, "items": EVENT}})
BOOKING = closed(
    {
        "people": {"type": "integer", "minimum": 1, "maximum": 50},
        "place": {"anyOf": [TEXT, {"type": "null"}]},
        "kind": {"enum": ["restaurant", "bar", "cafe", "other"]},
        "outdoors": {"type": "boolean"},
        "notes": {"type": "array", "items": TEXT, "maxItems": 2},
    },
    "outdoors",
)
INTENT = closed(
    {
        "topic": {"enum": ["card", "transfer", "account", "top-up", "exchange", "other"]},
        "urgency": {"type": "number", "minimum": 0, "maximum": 1},
        "date": {"type": "string", "format": "date"},
        "reference": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    }
)
#: For the cost: an answer that goes on as long as it is let.
ENDLESS = closed({"timeline": {"type": "array", "minItems": 1000, "items": EVENT}})
WILD: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


class Task(NamedTuple):
    """Texts of one kind, what is asked about them, and the schema of the answer."""

    name: str
    schema: Schema
    prompts: Sequence[str]


def main() -> None:
    """Read the options and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2-135m", help="catalogue name, hub id or folder of the model")
    options.add_argument("--tokens", type=int, default=64, help="tokens of an answer whose cost is measured")
    options.add_argument("--repeats", type=int, default=7, help="how often each side is measured, in turns")
    options.add_argument("--prompts", type=int, default=10, help="texts of each task; 0 leaves validity out")
    options.add_argument("--random", type=int, default=40, help="answers of each random model to each schema")
    given = options.parse_args()
    print(blas.prepare().reason)
    with blas.single_threaded():  # as generate does
        print(f"BLAS threads: {blas.num_threads()}")
        if given.repeats:
            cost(given)
        if given.prompts:
            validity(given)
        if given.random:
            random_validity(given)


def cost(given: argparse.Namespace) -> None:
    """Seconds for a token, free and held."""
    from mlx_finetune.app.generate import prompt_ids, question
    from mlx_finetune.app.open import open_name
    from mlx_finetune.model.answers.constrain import Grammar
    from mlx_finetune.model.answers.generate import generate_tokens
    from mlx_finetune.model.answers.sampling import Sampling

    opened = open_name(given.model, base=Path.cwd(), report=lambda _: None)
    ids = prompt_ids(question(tasks(1)[0].prompts[0], opened.chat), opened.tokenizer, opened.data)
    started = time.perf_counter()
    grammar = Grammar(opened.tokenizer, ENDLESS)
    first = time.perf_counter()
    Grammar(opened.tokenizer, TIMELINE)
    print(f"grammar: {first - started:.2f} s with the tokenizer, {1e3 * (time.perf_counter() - first):.1f} ms after it")
    found: dict[str, list[tuple[float, float]]] = {"free": [], "held": []}
    settings = Sampling(temperature=0, max_tokens=given.tokens)
    for repeat in range(given.repeats + 1):
        for name in ("free", "held") if repeat % 2 else ("held", "free"):
            held = grammar if name == "held" else None
            tokenizer: Any = opened.tokenizer if held else Endless(opened.tokenizer)
            pieces = generate_tokens(opened.model, tokenizer, ids, settings, grammar=held)
            times = [(time.perf_counter(), time.process_time()) for _ in pieces]
            assert len(times) == given.tokens, f"{name}: {len(times)} tokens"
            if repeat:
                (first_wall, first_cpu), (wall, cpu), steps = times[0], times[-1], len(times) - 1
                found[name].append(((wall - first_wall) / steps, (cpu - first_cpu) / steps))
    for part, clock in enumerate(("by the clock", "of the processor")):
        free, held = ([one[part] for one in found[name]] for name in ("free", "held"))
        ratios = [ours / theirs for ours, theirs in zip(held, free, strict=True)]
        print(
            f"a token {clock}: free {1e3 * statistics.median(free):.1f} ms (best {1e3 * min(free):.1f}), held "
            f"{1e3 * statistics.median(held):.1f} (best {1e3 * min(held):.1f}), held / free "
            f"{statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})"
        )
    print(f"a mask and its token: {mask_cost(opened.model, opened.tokenizer, grammar):.0f} us in the median")


def mask_cost(model: Any, tokenizer: Any, grammar: Any) -> float:
    """Microseconds to mask logits and note the token, in the middle of answers."""
    import mlx.core as mx

    from mlx_finetune.model.answers.constrain import Constraint

    size = model(mx.array([[0]])).shape[-1]
    logits = mx.random.normal((size,), key=mx.random.key(0))
    mx.eval(logits)
    constraint, times = Constraint(grammar), list[float]()
    for index in range(400):
        started = time.perf_counter()
        masked = constraint.mask(logits)
        mx.eval(masked)
        spent = time.perf_counter() - started
        token = cast(int, mx.random.categorical(masked, key=mx.random.key(index)).item())
        if token in tokenizer.stop_token_ids:
            break
        started = time.perf_counter()
        constraint.advance(token)
        times.append(spent + time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def validity(given: argparse.Namespace) -> None:
    """Share of valid answers to real prompts."""
    from mlx_finetune.app.generate import prompt_ids, question
    from mlx_finetune.app.open import open_name
    from mlx_finetune.model.answers.constrain import Grammar
    from mlx_finetune.model.answers.sampling import Sampling

    opened = open_name(given.model, base=Path.cwd(), report=lambda _: None)
    for task in tasks(given.prompts):
        grammar = Grammar(opened.tokenizer, task.schema)
        prompts = [prompt_ids(question(text, opened.chat), opened.tokenizer, opened.data) for text in task.prompts]
        for name, settings in (
            ("greedy", Sampling(temperature=0, max_tokens=220)),
            ("T = 1", Sampling(max_tokens=220, **WILD)),
        ):
            for way, held in (("free", None), ("held", grammar)):
                said = answers(opened.model, opened.tokenizer, prompts, settings, held)
                report(f"{given.model}, {task.name}, {name}, {way}", task.schema, said)


def random_validity(given: argparse.Namespace) -> None:
    """The same for models that know nothing, in several vocabularies."""
    from mlx_finetune.model.answers.constrain import Grammar
    from mlx_finetune.model.answers.sampling import Sampling

    for name, tokenizer in vocabularies():
        model = random_model(tokenizer.vocab_size)
        prompts = [tokenizer.encode(f"Answer {index}:").ids for index in range(given.random)]
        for task in tasks(1):
            said = answers(model, tokenizer, prompts, Sampling(max_tokens=900, **WILD), Grammar(tokenizer, task.schema))
            report(f"random weights, {name}, {task.name}, held", task.schema, said)


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], settings: "Sampling", grammar: Any
) -> "list[list[Piece]]":
    """The pieces of every answer; prompt ``i`` draws with seed ``i``."""
    from mlx_finetune.model.answers.batches import BatchDecoder, Request

    decoder = BatchDecoder(model, tokenizer, max_rows=8)
    said: dict[int, list[Piece]] = {
        decoder.add(Request(ids, replace(settings, seed=index), grammar=grammar)): []
        for index, ids in enumerate(prompts)
    }
    while len(decoder):
        for number, piece in decoder.step():
            said[number].append(piece)
    return list(said.values())


def report(name: str, schema: Schema, said: "Sequence[Sequence[Piece]]") -> None:
    """One line: how many ended, and how many of these are valid."""
    import jsonschema

    from mlx_finetune.scoring.json_schema import Validator
    from mlx_finetune.scoring.json_text import NotJsonError, parse

    validator = Validator(schema)
    strict: Any = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    finishes = [pieces[-1].finish for pieces in said]
    valid = with_formats = 0
    for pieces in said:
        if pieces[-1].finish == "stop":
            try:
                value = parse("".join(piece.text for piece in pieces))
            except NotJsonError:
                continue
            valid += validator.is_valid(value)
            with_formats += strict.is_valid(value)
    print(
        f"{name}: {len(said)} answers, {finishes.count('stop')} ended, {valid} of these valid ({with_formats} formats "
        f"included), {finishes.count('length')} truncated, {finishes.count('failed')} failed",
        flush=True,
    )


def tasks(count: int) -> list[Task]:
    """Real texts with what is asked about them."""
    data = SHARED / "data"
    bookings = json.loads((data / "extraction/snips_BookRestaurant.json").read_text("utf-8", "replace"))
    sentences = ["".join(part["text"] for part in row["data"]) for row in bookings["BookRestaurant"][:count]]
    with (data / "customer_service/banking77_train.csv").open(encoding="utf-8", newline="") as file:
        questions = [row["text"] for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
    with (data / "dialogsum/test.jsonl").open(encoding="utf-8") as lines:
        talks = [json.loads(line)["dialogue"][:600] for line, _ in zip(lines, range(count), strict=False)]
    return [
        Task("timeline", TIMELINE, [f"Write the timeline of this talk as JSON.\n\n{text}" for text in talks]),
        Task("booking", BOOKING, [f"Write this booking as JSON: {text}" for text in sentences]),
        Task("intent", INTENT, [f"Write as JSON what this customer wants: {text}" for text in questions]),
    ]


def vocabularies() -> Iterator[tuple[str, Any]]:
    """Byte-level and sentencepiece tokenizers."""
    from mlx_finetune.model.tokens.tokenizer import load_tokenizer

    folder = SHARED / "models"
    yield "stories260K (sentencepiece, 512)", load_tokenizer(folder / "stories260K")
    for name, source, target in (
        ("gpt-neox (bytes, 50,277)", "gpt-neox-20B_tokenizer.json", "tokenizer.json"),
        ("llama2 (sentencepiece, 32,000)", "llama2_tokenizer.model", "tokenizer.model"),
    ):
        with tempfile.TemporaryDirectory() as made:
            (Path(made) / target).write_bytes((folder / "tokenizers" / source).read_bytes())
            if target == "tokenizer.json":
                (Path(made) / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
            yield name, load_tokenizer(Path(made))


def random_model(vocab_size: int) -> Any:
    """A small Llama whose head has some rows more than the tokenizer has tokens."""
    import mlx.core as mx
    from mlx_lm.models import llama

    mx.random.seed(0)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=(vocab_size // 64 + 1) * 64,
    )
    model = llama.Model(arguments)
    mx.eval(model.parameters())
    model.eval()
    return model


class Endless:
    """A tokenizer without end marks, so that every answer has its length."""

    stop_token_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


if __name__ == "__main__":
    main()
