"""From two Debian packages to a translator: English to German, trained in under an hour on two cores of a CPU.

Each step is a command you can run yourself. What came out, and how long it took, is in README.md beside this file.

    python examples/translate_en_de/run.py
"""

import subprocess
import sys
import time
from pathlib import Path

import corpus

HERE = Path(__file__).parent
DATA = Path("data/translate_en_de")
PAIRS = DATA / "pairs"
# Not from the corpus; the last ones are of a kind that it has nothing of.
SENTENCES = [
    "Choose the color of the line.",
    "Click OK to close the dialog.",
    "The text is inserted at the cursor position.",
    "To delete a row, right-click the row header and choose Delete Rows.",
    "How old are you?",
    "I don't know what he wants.",
    "The weather was very bad yesterday.",
    "The train to Munich leaves at 7:45 from platform {0}.",
    "The Commission has adopted a proposal for a regulation of the European Parliament.",
    "Time flies like an arrow; fruit flies like a banana.",
]


def fastllm(*arguments: object) -> None:
    command = [str(argument) for argument in arguments]
    print(f"\n$ fastllm {' '.join(command)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "fastllm", *command], check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    run = Path("runs") / time.strftime("en-de-%Y%m%d-%H%M%S")
    corpus.main(DATA)
    fastllm(
        "prepare", "parallel", "--pairs", DATA / "help.tsv", DATA / "ding.tsv", "--out", PAIRS, "--vocab_size", 5000,
        "--model_type", "bpe", "--max_tokens", 96, "--val_share", 0.02, "--test_share", 0.03,
    )  # fmt: skip
    fastllm("train", "--config", HERE / "train.yaml", "--data", PAIRS, "--out", run)
    fastllm("eval", run, "--average", 3, "--out", run / "mean", "--split", "test")
    show(run / "mean")


def show(model: Path) -> None:
    """Print translations of the test split, its best, middling and worst by chrF, and of sentences from elsewhere."""
    from sacrebleu.metrics import CHRF

    from fastllm import models, translate
    from fastllm.data import ParallelData
    from fastllm.tokenizers import load_tokenizer

    net, tokenizer = models.load(model), load_tokenizer(model)
    test = ParallelData(PAIRS).split("test")
    sources = [test.source_text(i) for i in range(len(test))]
    references = [test.target_text(i) for i in range(len(test))]
    found = [one.text for one in translate(net, tokenizer, sources)]
    chrf = CHRF(eps_smoothing=True)
    scored = sorted(
        (chrf.sentence_score(ours, [theirs]).score, source, theirs, ours)
        for source, theirs, ours in zip(sources, references, found, strict=True)
    )
    for name, first in (("best", len(scored) - 5), ("median", len(scored) // 2 - 2), ("worst", 0)):
        print(f"\nTest sentences, the {name} by chrF:")
        for score, source, theirs, ours in scored[first : first + 5]:
            print(f"  {score:5.1f}  en: {source}\n         de: {theirs}\n       ours: {ours}")
    print("\nSentences from elsewhere:")
    for one in translate(net, tokenizer, SENTENCES):
        print(f"  {one.source}\n    {one.text}{'  (' + ', '.join(one.faults) + ')' if one.faults else ''}")


if __name__ == "__main__":
    main()
