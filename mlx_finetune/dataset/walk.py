"""One example to sequences: rendering, refusals, mask and truncation, with a tally of everything that is not as given.

A conversation goes through the chat template (``mask.py``), an instruction through the chat template or, for base
models, a prompt template (``prompts.py``), text as it is.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mlx_finetune.dataset.control import ControlMarkers, refuse_half_characters
from mlx_finetune.dataset.conversation import complete, instruction_turns, single_exchange, wrapped_tools
from mlx_finetune.dataset.draft import LABEL, PROMPT_TEMPLATE, WHOLE_TEXT, Draft
from mlx_finetune.dataset.edges import bos_to_add, edges_of, token_text
from mlx_finetune.dataset.formats import Example, Instruction, Labelled, Messages, Preference, Text
from mlx_finetune.dataset.mask import Renderer, Rendering, target_mask
from mlx_finetune.dataset.prompts import PromptTemplate, template_of
from mlx_finetune.dataset.tokens import (
    Encoded,
    Encoding,
    Message,
    Tally,
    Tokenizer,
    TokenizeReport,
    Tokens,
    Totals,
)
from mlx_finetune.dataset.truncate import keep_end, shorter_conversations, split
from mlx_finetune.dataset.two_sides import fit, two_sided
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.recipe.data import DataRecipe

_USE_MESSAGES = "write it in other words; text that is already rendered belongs in rows with messages"


class Walk:
    """What stays the same from row to row, and the tally of what happens to them."""

    def __init__(self, tokenizer: Tokenizer, data: DataRecipe, *, task: str, base: Path | None) -> None:
        self._tokenizer = tokenizer
        self._data = data
        self._learns_all = task == "pretrain" or not data.mask_prompt
        self._markers = ControlMarkers(tokenizer)
        self._renderer = Renderer(tokenizer, data.template_arguments)
        self._prompt = template_of(tokenizer, data, base=base)
        self._by_prompt = self._prompt is not None
        self._edges = edges_of(tokenizer)
        self.behind_prompt = list(self._edges or ())
        self._bos = bos_to_add(tokenizer)
        self._bos_text = token_text(tokenizer, tokenizer.bos_token_id)
        self._eos_text = token_text(tokenizer, tokenizer.eos_token_id)
        self._tally = Tally()
        self._labels: dict[str, int] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the drafts so far, in the order of the numbers in their values."""
        return tuple(self._labels)

    def drafts(self, example: Example) -> list[Draft]:
        """Sequences of one example; none where it is refused or has nothing to learn (both are tallied)."""
        try:
            drafts = self._unchecked_drafts(example)
            for draft in drafts:
                refuse_half_characters(draft.text)
        except DataError as error:
            self._tally.add("refused", Problem(where(example), error.message, error.hint))
            return []
        return drafts

    def _unchecked_drafts(self, example: Example) -> list[Draft]:
        if isinstance(example, Text):
            if self._edges is not None:
                raise DataError("plain text has no prompt and answer, which an encoder-decoder model learns from")
            return [self._text(example, example.text)]
        if isinstance(example, Labelled):
            text = self._data.text_template.replace("{text}", example.text)
            number = self._labels.setdefault(str(example.label), len(self._labels))
            return [replace(self._text(example, text), method=LABEL, values=(float(number),))]
        if isinstance(example, Preference):
            verdict = float(example.chosen is not None)
            return [replace(draft, values=(verdict,), is_judged=True) for draft in self._answers(example)]
        if isinstance(example, Instruction):
            if self._by_prompt:
                return self._prompted(example, example.instruction, example.input, example.output)
            return self._chat(example, instruction_turns(example), None)
        assert isinstance(example, Messages), "tokenize refuses the other kinds"
        if self._by_prompt:
            return self._prompted(example, *single_exchange(example.messages))
        return self._chat(example, example.messages, example.tools)

    def _answers(self, example: Preference) -> list[Draft]:
        """The conversation with the one answer of an unpaired row, which alone is learned."""
        answer = example.chosen if example.chosen is not None else example.rejected
        assert answer is not None, "tokenize refuses rows with no answer"
        turns = Messages(
            example.prompt + answer, example.tools, example.source, example.line, example.weight, only_last=True
        )
        return self._unchecked_drafts(turns)

    def _text(self, example: Example, text: str) -> Draft:
        bos, eos = self._bos_text, self._eos_text
        bare = text.removeprefix(bos) if bos else text
        bare = bare.removesuffix(eos) if eos else bare
        if bare != text:
            self._tally.add(
                "doubled_marker",
                Problem(where(example), "the row brings its own begin or end marker; it is not written twice"),
            )
        self._refuse_marker(self._markers.find(bare), "the text")
        return Draft(bare, None, WHOLE_TEXT, example, is_document=True)

    def _chat(self, example: Example, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[Draft]:
        self._refuse_marker(self._markers.find_in_messages(messages), "the conversation")
        self._refuse_marker(self._markers.find(tools), "`tools`")
        only_last = isinstance(example, Messages) and example.only_last
        renderings = self._renderer.conversation(complete(messages), wrapped_tools(tools), only_last=only_last)
        self._refuse_stitched(messages, tools, renderings)
        self._note_reasoning(example, messages, renderings)
        if not renderings:
            self._tally.add("no_target", Problem(where(example), "no assistant turn: nothing to learn"))
        return [Draft(r.text, r.spans, r.method, example, is_document=False, rendering=r) for r in renderings]

    def _note_reasoning(self, example: Example, messages: Sequence[Message], renderings: Sequence[Rendering]) -> None:
        """Count a conversation with reasoning that the template nowhere writes."""
        reasoning = [str(message["reasoning_content"]) for message in messages if message.get("reasoning_content")]
        if any(not any(text.strip() in rendering.text for rendering in renderings) for text in reasoning):
            self._tally.add("reasoning_left_out", Problem(where(example), "the chat template leaves out reasoning"))

    def _refuse_stitched(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, renderings: Sequence[Rendering]
    ) -> None:
        """Refuse a conversation out of whose parts the template made a control marker that no part holds."""
        if not self._markers.may_hold(messages) or self._markers.neutral(messages) == list(messages):
            return
        for rendering in renderings:
            harmless = cast("list[Message]", self._markers.neutral(rendering.messages))
            try:
                text = self._tokenizer.render(
                    harmless, tools=wrapped_tools(tools), arguments=self._data.template_arguments
                )
            except DataError:
                continue
            if self._markers.count(text) != self._markers.count(rendering.text):
                raise DataError("the chat template makes a control marker out of this conversation", _USE_MESSAGES)

    def _prompted(self, example: Example, instruction: str, input_text: str, output: str) -> list[Draft]:
        template = self._need_prompt()
        for name, text in (("instruction", instruction), ("input", input_text), ("answer", output)):
            self._refuse_marker(self._markers.find(text), f"the {name}")
        prompt = template.prompt(instruction, input_text)
        text = prompt + output + template.ending(instruction, input_text)
        return [Draft(text, ((len(prompt), len(text)),), PROMPT_TEMPLATE, example, is_document=True)]

    def tokenized(self, example: Example) -> list[Tokens]:
        """Every row of one example. Raises ``DataError`` with the reason where nothing of it can be used."""
        rows: list[Tokens] = []
        for draft in self.drafts(example):
            rows += self.rows(draft, self.encoded(draft))
        refusal = self.refusal()  # what was tallied is taken either way
        if not rows:
            raise refusal
        return rows

    def encoded(self, draft: Draft) -> Encoded:
        """The tokens of one draft."""
        return self.without_merged_border(draft, self._tokenizer.encode(draft.text))

    def refusal(self) -> DataError:
        """Why nothing of an example can be used, by the first of what was tallied since the last call."""
        problems = [problem for outcome in self.take_tally().outcomes().values() for problem in outcome.rows]
        why = problems[0] if problems else Problem("", "nothing of the row can be learned")
        return DataError(why.message, why.hint)

    def rows(self, draft: Draft, encoding: Encoded) -> list[Tokens]:
        """Rows of one encoded draft after mask and truncation; none where nothing is left (tallied)."""
        try:
            ids, mask = self.ids_and_mask(draft, encoding)
            fitted = self.fitted(draft, ids, mask)
        except DataError as error:
            self._tally.add("refused", Problem(where(draft.example), error.message, error.hint))
            return []
        example = draft.example
        rows: list[Tokens] = []
        for ids, mask in fitted:
            if mask.any():
                rows.append(Tokens(ids, mask, example.source, example.line, example.weight, draft.values))
            else:
                self._tally.add("no_target", Problem(where(example), f"nothing to learn in {len(ids)} tokens"))
        return rows

    def fitted(
        self, draft: Draft, ids: NDArray[np.int32], mask: NDArray[np.bool_]
    ) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """The row within its limits: as it is, cut, in pieces, or not at all; tallied."""
        if self._edges is not None:
            return fit(ids, mask, self._data, lambda outcome, *said: self.note(outcome, draft.example, *said))
        return [(ids, mask)] if len(ids) <= self._data.max_seq_length else self.shorten(draft, ids, mask)

    def note(self, outcome: str, example: Example, message: str, hint: str = "") -> None:
        """Count an example with this outcome."""
        self._tally.add(outcome, Problem(where(example), message, hint))

    def without_merged_border(self, draft: Draft, encoding: Encoded) -> Encoded:
        """The encoding, or that of prompt and answer apart where a token holds the end of one and the start of other.

        Only for prompt templates, whose prompt is tokenised alone when an answer is generated; with a prompt that ends
        in a blank, the first word of every answer would be neither learned nor possible otherwise. Always for
        encoder-decoder models, which read the two apart.
        """
        if draft.method != PROMPT_TEMPLATE or not draft.spans:
            return encoding
        border = draft.spans[0][0]
        if self._edges is None and not any(start < border < end for start, end in encoding.offsets):
            return encoding
        before, after = self._tokenizer.encode_batch([draft.text[:border], draft.text[border:]])
        moved = [(start + border, end + border) for start, end in after.offsets]
        return Encoding(before.ids + after.ids, before.offsets + moved)

    def ids_and_mask(self, draft: Draft, encoding: Encoded) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The whole row, however long. Raises ``DataError`` where it must be refused."""
        ids = np.array(array("i", encoding.ids), dtype=np.int32)  # twice as fast as asarray of the list
        disguised = self._markers.disguised(draft.text, encoding, ids)
        if disguised:
            raise DataError(f"characters of this row become the control token {disguised!r} in the tokenizer")
        if self._edges is not None and draft.spans:
            cut = encoding.first_from(draft.spans[0][0])
            if lost := int(np.count_nonzero(ids == self._tokenizer.unk_token_id)):
                self._tally.add("unknown", Problem(where(draft.example), f"{lost} tokens stand for unknown characters"))
            return two_sided(ids[:cut], ids[cut:], self._edges)
        if draft.spans is None or self._learns_all:
            mask = np.ones(len(ids), dtype=np.bool_)
            if draft.spans is not None and not draft.is_document:
                target_mask(draft.text, encoding, draft.spans, self._tokenizer.stop_token_ids)  # refuses a missing end
        else:
            end_ids = frozenset[int]() if draft.is_document else self._tokenizer.stop_token_ids
            mask = target_mask(draft.text, encoding, draft.spans, end_ids)
        if draft.is_document:
            head = [] if self._bos is None else [self._bos]
            goes_on = isinstance(draft.example, Text) and draft.example.continues
            end = [] if goes_on else [self._tokenizer.eos_token_id]
            ids = np.concatenate((head, ids, end), dtype=np.int32, casting="unsafe")
            mask = np.concatenate(([False] * len(head), mask, [True] * len(end)), dtype=np.bool_, casting="unsafe")
            if draft.method == LABEL:
                mask[:-1] = False  # the state of the token before this one is what is scored
        elif len(ids) and ids[0] == self._tokenizer.bos_token_id:
            mask[0] = False
        if len(mask):
            mask[0] = False
        return self._with_one_more(ids, mask) if draft.is_judged else (ids, mask)

    def _with_one_more(
        self, ids: NDArray[np.int32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The row up to its last target and one token more, which nobody reads: an input is what has a next token."""
        end = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else len(ids)
        return np.append(ids[:end], np.int32(self._tokenizer.eos_token_id)), np.append(mask[:end], False)

    def shorten(
        self, draft: Draft, ids: NDArray[np.int32], mask: NDArray[np.bool_]
    ) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """What ``truncation`` makes of a row that is too long; tallied."""
        limit, how = self._data.max_seq_length, self._data.truncation
        what = f"{len(ids)} tokens are more than max_seq_length = {limit}"
        if how == "drop":
            self._tally.add("too_long", Problem(where(draft.example), f"{what}: dropped"))
            return []
        if how == "split":
            pieces = list(split(ids, mask, limit, self._bos))
            self._tally.add("split", Problem(where(draft.example), f"{what}: split into {len(pieces)} pieces"))
            return pieces
        shorter = self._cut_turns(draft)
        if shorter is not None:
            self._tally.add("cut", Problem(where(draft.example), f"{what}: its first turns were cut"))
            return [shorter]
        self._tally.add(
            "cut", Problem(where(draft.example), f"{what}: {len(ids) - limit} tokens were cut at the front")
        )
        return [keep_end(ids, mask, limit, self._tokenizer.bos_token_id)]

    def _cut_turns(self, draft: Draft) -> tuple[NDArray[np.int32], NDArray[np.bool_]] | None:
        if draft.rendering is None:
            return None
        conversation = draft.example if isinstance(draft.example, Messages) else None
        tools = wrapped_tools(conversation.tools if conversation else None)
        only_last = conversation is not None and conversation.only_last
        for messages in shorter_conversations(draft.rendering.messages):
            try:
                again = self._renderer.last_turn(messages, tools, draft.method, only_last=only_last)
                shorter = replace(draft, text=again.text, spans=again.spans, rendering=again)
                ids, mask = self.ids_and_mask(shorter, self._tokenizer.encode(again.text))
            except DataError:
                continue  # the template wants its turns otherwise; a shorter cut, or tokens, will do
            if len(ids) <= self._data.max_seq_length:
                return ids, mask
        return None

    def problems(self) -> tuple[Problem, ...]:
        """Everything tallied so far, located."""
        return tuple(problem for outcome in self._tally.outcomes().values() for problem in outcome.rows)

    def edge_texts(self) -> tuple[str, str]:
        """What stands for the tokens put before and after a document; the first is empty where none is."""
        return self._bos_text if self._bos is not None else "", self._eos_text

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> list[int]:
        """Ids of a prompt, the generation prompt included."""
        if not self._by_prompt:
            self._refuse_marker(self._markers.find_in_messages(messages), "the conversation")
            self._refuse_marker(self._markers.find(tools), "`tools`")
            text = self._rendered_prompt(complete(messages), tools)
            self._refuse_stitched_prompt(complete(messages), tools, text)
            return self._prompt_encoding(text)
        instruction, _, _ = single_exchange([*messages, {"role": "assistant", "content": ""}])
        self._refuse_marker(self._markers.find(instruction), "the prompt")
        head = [] if self._bos is None else [self._bos]
        return head + self._prompt_encoding(self._need_prompt().prompt(instruction, "")) + self.behind_prompt

    def _rendered_prompt(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> str:
        return self._tokenizer.render(
            messages,
            tools=wrapped_tools(tools),
            add_generation_prompt=True,
            arguments=self._data.template_arguments,
        )

    def _refuse_stitched_prompt(self, messages: Sequence[Message], tools: Sequence[Message] | None, text: str) -> None:
        """As ``_refuse_stitched``, for the one rendering of a prompt."""
        if not self._markers.may_hold(messages):
            return
        harmless = cast("list[Message]", self._markers.neutral(messages))
        try:
            again = self._rendered_prompt(harmless, tools)
        except DataError:
            return
        if self._markers.count(again) != self._markers.count(text):
            raise DataError("the chat template makes a control marker out of this conversation", _USE_MESSAGES)

    def _prompt_encoding(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(text)
        disguised = self._markers.disguised(text, encoding, np.array(encoding.ids, dtype=np.int32))
        if disguised:
            raise DataError(f"characters of the prompt become the control token {disguised!r} in the tokenizer")
        return encoding.ids

    def take_tally(self) -> Tally:
        """What was tallied since the last call."""
        taken, self._tally = self._tally, Tally()
        return taken

    def report(self, totals: Totals, num_examples: int, methods: Mapping[str, int], tally: Tally) -> TokenizeReport:
        """Counts over everything seen."""
        notes: list[str] = []
        if not self._by_prompt and "strftime_now" in self._tokenizer.template_source:
            notes.append(
                "the chat template asks for today's date and is always told 26 July 2024, so that runs can be repeated"
            )
        template = self._need_prompt().name if self._by_prompt else self._tokenizer.template_name
        return TokenizeReport(
            num_examples=num_examples,
            num_rows=totals.num_rows,
            num_tokens=totals.num_tokens,
            num_targets=totals.num_targets,
            longest=totals.longest,
            methods=methods,
            template=template,
            labels=self.labels,
            notes=tuple(notes),
            outcomes=tally.outcomes(),
            num_used=totals.num_used,
        )

    def _need_prompt(self) -> PromptTemplate:
        assert self._prompt is not None, "only asked for where rows go through a prompt template"
        return self._prompt

    @staticmethod
    def _refuse_marker(marker: str, place: str) -> None:
        if marker:
            raise DataError(f"{place} holds the control marker {marker!r}", _USE_MESSAGES)


def where(example: Example) -> str:
    """``file:line``."""
    return f"{example.source}:{example.line}" if example.source else ""
