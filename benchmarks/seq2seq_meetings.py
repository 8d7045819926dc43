"""A small T5 learns to summarise from random weights: rule-made talks, in minutes on two cores.

    python benchmarks/seq2seq_meetings.py make FOLDER
    mlxft train FOLDER/meetings.toml && mlxft eval FOLDER/run --tasks rouge,exact_match,loss
    python benchmarks/seq2seq_meetings.py score FOLDER

``make`` writes a model of 840 thousand random weights (v1.1), its tokenizer, rows of a fixed seed and a recipe.
``score`` sets the answers of the evaluation beside two summaries that nothing has to be learned for: the first turn of
the talk, and the summary of another talk. There is no pretrained T5 behind this: it shows that the training works, not
what a FLAN-T5 learns.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mlx_finetune.scoring.intervals import paired_bootstrap
from mlx_finetune.scoring.rouge import Rouge, rouge

ROWS = {"train": 4000, "valid": 100, "test": 200}
WIDTH, HEAD, HEADS, INNER, LAYERS, VOCABULARY = 96, 24, 4, 192, 2, 256
_NAMES = "Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul"
NAMES = _NAMES.split()
_PLACES = "station library harbour market museum bakery school park theatre bridge office garden"
PLACES = _PLACES.split()
_TIMES = "two three four five six seven eight nine ten eleven noon midnight"
TIMES = _TIMES.split()
_THINGS = "map bread camera guitar ladder lamp book cake radio tent umbrella wine chess basket drum kite"
THINGS = _THINGS.split()
SMALL_TALK = ("It rains again.", "How are you?", "I am well.", "The bus was late.", "What a week!", "I slept badly.")
RECIPE = """model = "{folder}/model"
output_dir = "{folder}/run"
task = "seq2seq"
seed = 3

[data]
path = "{folder}/rows"
columns = {{ prompt = "dialogue", completion = "summary" }}
prompt_template = "summarize: {{instruction}}"
max_seq_length = 128
max_target_length = 48

[training]
learning_rate = 1e-3
lr_scheduler = "linear"
max_steps = {steps}
warmup_steps = 50
batch_size = 32
eval_steps = {every}
save_steps = {every}

[eval]
prompts = ["Anna: Shall we meet? Ben: Yes, at the market. Anna: At nine. Ben: I will bring the lamp."]
max_new_tokens = 40
"""


def talks(split: str) -> Iterator[dict[str, str]]:
    """Rows of a split, each of its own seed; no two are the same."""
    draw, seen = random.Random(f"meetings {split}"), set[str]()
    while len(seen) < ROWS[split]:
        first, second = draw.sample(NAMES, 2)
        place, time, thing = draw.choice(PLACES), draw.choice(TIMES), draw.choice(THINGS)
        who, other = draw.sample([first, second], 2)
        turns = [
            (first, draw.choice([f"Shall we meet at the {place}?", f"Let us go to the {place}."])),
            (second, draw.choice([f"Yes, at {time}.", f"Good. I can be there at {time}."])),
            (who, draw.choice([f"I will bring the {thing}.", f"The {thing} comes with me."])),
        ]
        if draw.random() < 0.5:
            turns.insert(draw.randrange(len(turns) + 1), (other, draw.choice(SMALL_TALK)))
        dialogue = " ".join(f"{name}: {text}" for name, text in turns)
        if dialogue not in seen:
            seen.add(dialogue)
            summary = f"{first} and {second} meet at the {place} at {time}. {who} brings the {thing}."
            yield {"dialogue": dialogue, "summary": summary}


def make(folder: Path, steps: int) -> None:
    """Rows, model and recipe."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    for split in ROWS:
        text = "".join(json.dumps(row) + "\n" for row in talks(split))
        (folder / "rows" / f"{split}.jsonl").write_text(text)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    names = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(names))
    size = tokenizer.get_vocab_size()
    config = {"model_type": "t5", "vocab_size": size, "d_model": WIDTH, "d_kv": HEAD, "num_heads": HEADS}
    config |= {"d_ff": INNER, "num_layers": LAYERS, "num_decoder_layers": LAYERS, "feed_forward_proj": "gated-gelu"}
    config |= {"tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    (folder / "model" / "config.json").write_text(json.dumps(config, indent=1))
    weights = random_weights(size)
    save_file(weights, folder / "model" / "model.safetensors", {"format": "pt"})
    (folder / "meetings.toml").write_text(RECIPE.format(folder=folder, steps=steps, every=max(1, steps // 5)))
    count = sum(value.size for value in weights.values())
    print(f"{count:,} weights, {size} tokens; next: mlxft train {folder}/meetings.toml")


def make_tokenizer() -> Tokenizer:
    """A unigram tokenizer of the training rows with T5's control tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = [AddedToken(text, special=True, normalized=False) for text in ("<pad>", "</s>", "<unk>")]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator((text for row in talks("train") for text in row.values()), trainer)
    end = [("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], pair=None, special_tokens=end)
    return tokenizer


def random_weights(size: int) -> dict[str, np.ndarray]:
    """As T5 begins (1910.10683, and transformers): normal, of a deviation for each kind of matrix."""
    rng = np.random.default_rng(5)

    def normal(*shape: int, sd: float) -> np.ndarray:
        return rng.normal(0, sd, shape).astype(np.float32)

    width = HEADS * HEAD
    weights = {"shared.weight": normal(size, WIDTH, sd=1.0), "lm_head.weight": normal(size, WIDTH, sd=WIDTH**-0.5)}
    for stack, attentions in (("encoder", ("Self",)), ("decoder", ("Self", "EncDec"))):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weights |= {table: normal(32, HEADS, sd=WIDTH**-0.5)}
        weights |= {f"{stack}.final_layer_norm.weight": np.ones(WIDTH, np.float32)}
        for block in range(LAYERS):
            for number, kind in enumerate((*attentions, "DenseReluDense")):
                layer = f"{stack}.block.{block}.layer.{number}"
                weights[f"{layer}.layer_norm.weight"] = np.ones(WIDTH, np.float32)
                if kind == "DenseReluDense":
                    for name in ("wi_0", "wi_1"):
                        weights[f"{layer}.{kind}.{name}.weight"] = normal(INNER, WIDTH, sd=WIDTH**-0.5)
                    weights[f"{layer}.{kind}.wo.weight"] = normal(WIDTH, INNER, sd=INNER**-0.5)
                    continue
                place = f"{layer}.{kind}Attention"
                weights[f"{place}.q.weight"] = normal(width, WIDTH, sd=(WIDTH * HEAD) ** -0.5)
                weights |= {f"{place}.{name}.weight": normal(width, WIDTH, sd=WIDTH**-0.5) for name in ("k", "v")}
                weights[f"{place}.o.weight"] = normal(WIDTH, width, sd=width**-0.5)
    return weights


def score(folder: Path) -> None:
    """ROUGE of the run's answers and of two summaries for nothing, with the interval of the difference."""
    rows = [json.loads(line) for line in (folder / "rows" / "test.jsonl").read_text().splitlines()]
    answers = read_answers(folder)
    kinds = {
        "first turn": [row["dialogue"].split(": ", 1)[1].split(": ")[0].rpartition(" ")[0] for row in rows],
        "another talk's": [rows[place - 1]["summary"] for place in range(len(rows))],
    }
    ours = [rouge(row["summary"], answer) for row, answer in zip(rows, answers, strict=True)]
    right = sum(row["summary"] == answer for row, answer in zip(rows, answers, strict=True))
    print(f"{len(rows)} test rows, {right} word for word; ROUGE-1 {mean(ours, 'rouge1'):.3f}, ", end="")
    print(f"ROUGE-2 {mean(ours, 'rouge2'):.3f}, ", end="")
    print(f"ROUGE-L {mean(ours, 'rouge_l'):.3f}")
    for name, texts in kinds.items():
        theirs = [rouge(row["summary"], text) for row, text in zip(rows, texts, strict=True)]
        gain = paired_bootstrap([one.rouge_l for one in theirs], [one.rouge_l for one in ours], seed=1)
        low, high = gain.interval.low, gain.interval.high
        print(f"{name}: ROUGE-L {mean(theirs, 'rouge_l'):.3f}, gain {gain.value:.3f} ({low:.3f} to {high:.3f})")


def read_answers(folder: Path) -> list[str]:
    """The tuned answers of ``mlxft eval``, in the order of the test rows."""
    lines = (folder / "run" / "eval" / "test.rows.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    answers = {one["row"]: one["answer"] for one in found if one.get("work") == "answer" and one.get("side") == "tuned"}
    return [answers[row] for row in sorted(answers)]


def mean(scores: list[Rouge], name: str) -> float:
    """Over all rows."""
    return sum(getattr(one, name) for one in scores) / len(scores)


if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    {"make": lambda: make(Path(where), int(rest[0]) if rest else 1500), "score": lambda: score(Path(where))}[verb]()
