"""The names of what ``mlxft eval`` measures: tasks, checks, and the measures of each, which gates are about.

Nothing is imported, so that ``--help`` can list them.
"""

#: Task -> what it measures, for help and error messages.
TASKS: dict[str, str] = {
    "loss": "loss of the held-out answers",
    "perplexity": "perplexity, bits per byte and loss of plain text",
    "preference": "pairs whose chosen answer is likelier, or how likely good and bad answers are",
    "exact_match": "answers equal to the reference",
    "token_f1": "words shared with the reference",
    "labels": "accuracy and macro F1 of a class",
    "rouge": "ROUGE-1, -2, -L and -Lsum",
    "bleu": "BLEU, with the package sacrebleu",
    "number": "the final number of the answer",
    "json": "JSON that parses, fits the schema, has the right fields",
    "speed": "tokens a second, one answer at a time",
    "general": "what was known before: plain text and short questions",
}
#: Check -> what stands behind its colon.
CHECKS: dict[str, str] = {"regex": "a pattern", "contains": "a text", "max_length": "a number of characters"}
#: Measure -> the task that it comes from.
MEASURES: dict[str, str] = {
    "loss": "loss",
    "answer_bits_per_byte": "loss",
    "perplexity": "perplexity",
    "bits_per_byte": "perplexity",
    "text_loss": "perplexity",
    "preferred": "preference",
    "preferred_per_token": "preference",
    "chosen_loss": "preference",
    "good_over_bad": "preference",
    "good_loss": "preference",
    "bad_loss": "preference",
    "exact_match": "exact_match",
    "token_f1": "token_f1",
    "accuracy": "labels",
    "macro_f1": "labels",
    "accuracy_generated": "labels",
    "macro_f1_generated": "labels",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "rougeLsum": "rouge",
    "bleu": "bleu",
    "number": "number",
    "number_found": "number",
    "json_parses": "json",
    "json_valid": "json",
    "json_fields": "json",
    "json_valid_constrained": "json",
    "json_fields_constrained": "json",
    "general_questions": "general",
    "general_perplexity": "general",
    "general_bits_per_byte": "general",
}
#: All of them, for a sentence.
TASK_LIST = f"{', '.join(TASKS)}, regex:PATTERN, contains:TEXT, max_length:N (characters)"
