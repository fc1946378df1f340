"""fastllm sample on a folder with a model that was never trained."""

import io
import os
import subprocess
import sys

import pytest
import torch

from fastllm import cli
from fastllm.cli.parser import unescaped
from fastllm.errors import UserError
from fastllm.generation import beam_search, generate_text
from fastllm.models import GPT, GPTConfig
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer

TOKENIZER = CharacterTokenizer("\nabcdefghijklmnopqrstuvwxyz")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, 16, 1, 2, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save(tmp_path / "model")
    return tmp_path / "model"


def sample(capsys, folder, *options):
    assert cli.main(["sample", str(folder), "--max_new_tokens=25", *options]) == 0
    return capsys.readouterr().out


def expected(folder, prompts, **options):
    results = generate_text(
        GPT.from_pretrained(folder), TOKENIZER, prompts, 25, **{"seed": 1337, "temperature": 0.8, **options}
    )
    return [prompt + result.text for prompt, result in zip(prompts, results, strict=True)]


def test_one_sample_from_a_model_folder(folder, capsys):
    assert sample(capsys, folder, "--prompt=ab") == expected(folder, ["ab"])[0] + "\n"


def test_the_device_is_chosen(folder, capsys, monkeypatch):
    placed = []
    monkeypatch.setattr(GPT, "to", lambda model, device: placed.append(device) or model)
    sample(capsys, folder, "--prompt=ab", "--device=cpu")
    assert placed == [torch.device("cpu")]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["sample", str(folder), "--device=cuda"]) == 2
    assert "sample: 'device' cannot be cuda: torch sees no CUDA device; take --device cpu" in capsys.readouterr().err


def test_every_option_reaches_the_sampler(folder, capsys):
    options = ["--temperature=1.5", "--top-k=9", "--top-p=0.9", "--min-p=0.02", "--repetition-penalty=1.3"]
    values = {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3}
    plain = expected(folder, ["ab"])[0]
    for option, (name, value) in zip(options, values.items(), strict=True):
        output = sample(capsys, folder, "--prompt=ab", option)
        assert output == expected(folder, ["ab"], **{name: value})[0] + "\n"
    assert sample(capsys, folder, "--prompt=ab", *options) == expected(folder, ["ab"], **values)[0] + "\n"
    stop = plain[10:12]
    assert sample(capsys, folder, "--prompt=ab", "--stop", "0", "--stop", stop) == plain[: plain.index(stop, 2)] + "\n"


def test_several_samples_are_those_of_their_seeds(folder, capsys):
    output = sample(capsys, folder, "--prompt=ab", "--num-samples=3")
    texts = expected(folder, ["ab"] * 3)
    assert output == ("\n\n" + "-" * 40 + "\n").join(texts) + "\n"
    assert output.startswith(sample(capsys, folder, "--prompt=ab")[:-1])


def test_prompts_from_a_file(folder, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffab\n\nthecat\r\n", encoding="utf-8")
    output = sample(capsys, folder, "--prompt_file", str(tmp_path / "prompts.txt"))
    assert output == ("\n\n" + "-" * 40 + "\n").join(expected(folder, ["ab", "thecat"])) + "\n"


def test_the_size_of_batches_changes_no_text(folder, capsys, tmp_path):
    prompts = ["ab", "thecat", "x", "yz", "q" * 20]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    file = f"--prompt_file={tmp_path / 'prompts.txt'}"
    whole = ("\n\n" + "-" * 40 + "\n").join(expected(folder, [prompt for prompt in prompts for _ in range(2)])) + "\n"
    for size in ([], ["--batch-size=1"], ["--batch-size=3"], ["--batch-size=100"]):
        assert sample(capsys, folder, file, "--num-samples=2", *size) == whole


def test_batches_are_printed_as_they_are_done(folder, capsys, tmp_path, monkeypatch):
    """With a model that fails after some steps, what was made before is there."""
    (tmp_path / "prompts.txt").write_text("ab\nthecat\nx\n")
    steps, forward = [], GPT.forward

    def failing(self, *arguments):
        steps.append(arguments)
        if len(steps) > 30:
            raise UserError("enough")
        return forward(self, *arguments)

    monkeypatch.setattr(GPT, "forward", failing)
    file = f"--prompt_file={tmp_path / 'prompts.txt'}"
    assert cli.main(["sample", str(folder), "--max_new_tokens=25", file, "--batch_size=1"]) == 2
    monkeypatch.undo()
    assert capsys.readouterr().out == expected(folder, ["ab", "thecat"])[0] + "\n"


def test_prompts_that_cannot_be_read_are_told_by_their_line(folder, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    for content, message in [
        (b"ab\r\n\n\nAB\n", "prompts.txt, line 4: the text has characters that are not in the vocabulary of 27 "),
        (b"ab\ncd\xff\n", "prompts.txt, line 2: byte 0xFF is not UTF-8"),
    ]:
        file.write_bytes(content)
        assert cli.main(["sample", str(folder), f"--prompt_file={file}"]) == 2
        assert message in capsys.readouterr().err


def test_long_prompts_are_counted(folder, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("ab\n" + "ab" * 20 + "\n")
    assert cli.main(["sample", str(folder), "--max_new_tokens=1", f"--prompt_file={tmp_path / 'prompts.txt'}"]) == 0
    told = "fastllm: 1 of 2 prompts have more tokens than the model's context; it sees the last 16\n"
    assert capsys.readouterr().err == told


def test_interactive_says_what_is_not_utf8_and_asks_again(folder):
    command = [sys.executable, "-m", "fastllm", "sample", str(folder), "--interactive", "--max_new_tokens=2"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, input=b"\xff\nab\n", capture_output=True, env=environment, check=False)
    assert done.returncode == 0
    assert done.stderr == b"fastllm: sample: the prompt is not UTF-8\n"
    assert done.stdout.startswith(b"> > ab")


def test_interrupted_while_it_asks(folder, capsys, monkeypatch):
    def interrupt(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert cli.main(["sample", str(folder), "--interactive"]) == 130
    assert capsys.readouterr().err == "fastllm: interrupted\n"


def test_interactive_asks_until_the_end_of_input(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n\nA\nxyz\n"))
    assert cli.main(["sample", str(folder), "--max_new_tokens=25", "--interactive"]) == 0
    output, errors = capsys.readouterr()
    ab, xyz = expected(folder, ["ab"])[0], expected(folder, ["xyz"], seed=1338)[0]
    assert output == f"> {ab}\n> > > {xyz}\n> \n"
    assert "not in the vocabulary of 27 tokens: 'A'" in errors


def test_a_prompt_longer_than_the_context_is_said_to_be(folder, capsys):
    assert cli.main(["sample", str(folder), "--max_new_tokens=1", "--prompt", "ab" * 20]) == 0
    assert "the prompt has 40 tokens; the model sees the last 16" in capsys.readouterr().err


def test_beams(folder, capsys):
    beams = beam_search(GPT.from_pretrained(folder), TOKENIZER.encode("ab"), 25, num_beams=3, alpha=0.6)
    output = sample(capsys, folder, "--prompt=ab", "--num_beams=3")
    assert output == "ab" + TOKENIZER.decode(beams[0].ids) + "\n"
    output = sample(capsys, folder, "--prompt=ab", "--num_beams=3", "--num_samples=2", "--length_penalty=power")
    assert output.count("-" * 40) == 1


def test_beams_of_prompts_from_a_file_are_those_of_each(folder, capsys, tmp_path):
    prompts = ["ab", "thecat", "x", "yz"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    options = ["--num_beams=3", "--num_samples=2"]
    alone = [sample(capsys, folder, f"--prompt={prompt}", *options)[:-1] for prompt in prompts]
    for together in (64, 6, 1):  # all at once, two, one
        output = sample(
            capsys, folder, f"--prompt_file={tmp_path / 'prompts.txt'}", f"--batch-size={together}", *options
        )
        assert output == ("\n\n" + "-" * 40 + "\n").join(alone) + "\n"


def test_stops_are_unescaped(folder, capsys):
    (free,) = expected(folder, ["ab"], temperature=1.5)
    assert "\n" in free
    output = sample(capsys, folder, "--prompt=ab", "--temperature=1.5", "--stop", r"\n")
    assert output == free[: free.index("\n")] + "\n"


def test_unescaped():
    assert unescaped(r"a\n\t\r\\n\x\\") == "a\n\t\r\\n\\x\\"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--temperature=0", "--seed=5", "--top_k=3"], "--top_k and --seed"),
        (["--top_k=1", "--temperature=1.5", "--min_p=0.1"], "--temperature and --min_p"),
        (["--temperature=0", "--repetition_penalty=1.2"], ""),  # applies
        (["--top_k=2", "--temperature=1.5"], ""),
    ],
)
def test_options_without_effect_are_named(folder, capsys, options, named):
    assert cli.main(["sample", str(folder), "--max_new_tokens=1", *options]) == 0
    errors = capsys.readouterr().err
    assert errors == (f"fastllm: the likeliest token is taken each time, whatever {named} may be\n" if named else "")


def test_beams_end_at_stops_so_that_the_penalty_of_their_length_counts(folder, capsys):
    options = ["--prompt=ab", "--num_beams=8", *(f"--stop={letter}" for letter in "abcdefghijklmnop")]
    short = sample(capsys, folder, *options, "--alpha=-5")
    long = sample(capsys, folder, *options, "--alpha=5")
    assert len(short) < len(long)
    assert not set(long[2:]) & set("abcdefghijklmnop")


def test_the_token_between_documents_ends_a_text(tmp_path, capsys):
    tokenizer = ByteTokenizer()
    model = GPT(GPTConfig(tokenizer.vocab_size, 16, 1, 2, 16))
    with torch.no_grad():
        model.norm.weight.fill_(0.0)  # every token as likely as any other: one in 257 ends the text
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    texts = [sample(capsys, tmp_path, "--prompt=a", "--max_new_tokens=2000", f"--seed={seed}") for seed in range(3)]
    assert all("<|endoftext|>" not in text for text in texts)
    assert min(map(len, texts)) < 1000
    assert len(sample(capsys, tmp_path, "--prompt=a", "--num_beams=300", "--alpha=-5")) < 25


def test_streams_as_it_comes(folder):
    """The first piece is there while the command still runs."""
    command = [sys.executable, "-m", "fastllm", "sample", str(folder), "--prompt=ab", "--max_new_tokens=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.read(20).startswith(b"ab")
        assert process.poll() is None
        process.terminate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt="], "'prompt' must not be empty; leave it out to start from a new line"),
        (["--prompt=A"], "characters that are not in the vocabulary of 27 tokens: 'A'"),
        (["--num_samples=0"], "'num_samples' must be at least 1, got 0"),
        (["--top_p=1.5"], "'top_p' must be in (0, 1], got 1.5"),
        (["--temperature=-1"], "'temperature' must be at least 0 and finite, got -1.0"),
        (["--max_new_tokens=-1"], "'max_new_tokens' must be at least 0, got -1"),
        (["--prompt_file=nowhere"], "cannot read the prompts in nowhere"),
        (["--interactive", "--prompt_file=x"], "'interactive' and 'prompt_file' do not go together"),
        (["--interactive", "--prompt=a"], "'interactive' and 'prompt' do not go together"),
        (["--prompt=a", "--prompt_file=x"], "'prompt_file' and 'prompt' do not go together"),
        (["--num_beams=2", "--top_k=5"], "beam search draws nothing: leave out --top_k, or --num_beams"),
        (["--num_beams=2", "--seed=5", "--temperature=0"], "leave out --temperature and --seed, or --num_beams"),
        (["--alpha=0.6"], "--alpha only says how beam search works: add --num_beams, or leave it out"),
        (["--length_penalty=power", "--num_beams=1"], "--length_penalty only says how beam search works"),
        (["--temperature=0", "--num_samples=2"], "so all samples would be one: leave out --num_samples"),
        (["--checkpoint=best"], "'checkpoint' chooses a checkpoint of a run, and "),
        (["--num_beams=2", "--stop", "xy"], "with beam search 'stop' must be texts of one token each"),
        (["--num_beams=2", "--num_samples=3"], "'num_samples' must be at most num_beams (2)"),
        (["--seed=-1"], "'seed' must be in [0, 2^63), got -1"),
        (["--num_beams=0"], "'num_beams' must be at least 1, got 0"),
        (["--batch_size=0"], "'batch_size' must be at least 1, got 0"),
        (["--prompt=\udcff"], "sample: the prompt is not UTF-8"),
        (["--num_beams=2", "--stop=A"], "sample: 'stop': the text has characters that are not in the vocabulary"),
        (["--top_p=0"], "'top_p' must be in (0, 1], got 0.0"),
        (["--top_k=0"], "'top_k' must be at least 1, got 0"),
        (["--min_p=2"], "'min_p' must be in [0, 1], got 2.0"),
        (["--repetition_penalty=0"], "'repetition_penalty' must be positive and finite, got 0.0"),
        (["--stop="], "'stop' must not have an empty string"),
        (["--num_beams=2", "--length_penalty=x"], "'length_penalty' must be one of gnmt, power, got 'x'"),
    ],
)
def test_wrong_options(folder, capsys, options, message):
    assert cli.main(["sample", str(folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_vocabulary_without_a_new_line_asks_for_a_prompt(folder, capsys):
    tokenizer = CharacterTokenizer("abc")
    GPT(GPTConfig(tokenizer.vocab_size, 16, 1, 2, 16)).save_pretrained(folder)
    tokenizer.save(folder)
    assert cli.main(["sample", str(folder)]) == 2
    assert "the vocabulary has no new line to start from; give a --prompt" in capsys.readouterr().err
    assert sample(capsys, folder, "--prompt=a").startswith("a")


def test_a_terminal_that_lacks_characters_gets_their_numbers(folder, monkeypatch):
    tokenizer = CharacterTokenizer("é")
    GPT(GPTConfig(tokenizer.vocab_size, 16, 1, 2, 16)).save_pretrained(folder)
    tokenizer.save(folder)
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, "ascii"))
    assert cli.main(["sample", str(folder), "--prompt=é", "--max_new_tokens=2"]) == 0
    sys.stdout.flush()
    assert terminal.getvalue() == rb"\xe9\xe9\xe9" + b"\n"


def test_several_prompts(folder, capsys):
    output = sample(capsys, folder, "--prompt=ab", r"--prompt=the\ncat")
    assert output == ("\n\n" + "-" * 40 + "\n").join(expected(folder, ["ab", "the\ncat"])) + "\n"


def test_prompts_from_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\nthecat\n")))
    output = sample(capsys, folder, "--prompt-file", "-")
    assert output == ("\n\n" + "-" * 40 + "\n").join(expected(folder, ["ab", "thecat"])) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\n\xff\n")))
    assert cli.main(["sample", str(folder), "--prompt-file=-"]) == 2
    assert "sample: standard input, line 2: byte 0xFF is not UTF-8" in capsys.readouterr().err


def test_interactive_answers_differ(folder, capsys, monkeypatch):
    """The same prompt again gets another text: that of the next seed; one that failed takes none."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\nA\nab\n"))
    output = sample(capsys, folder, "--interactive", "--num_samples=1")
    first, second = (expected(folder, ["ab"], seed=seed)[0] for seed in (1337, 1338))
    assert first != second
    assert output == f"> {first}\n> > {second}\n> \n"


def test_ctrl_c_ends_the_answer_and_not_the_program(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\nab\n"))
    steps, forward = [], GPT.forward

    def interrupted(self, *arguments):
        steps.append(arguments)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(GPT, "forward", interrupted)
    output = sample(capsys, folder, "--interactive")
    (second,) = expected(folder, ["ab"], seed=1338)
    assert output.endswith(f"\n> {second}\n> \n")


def test_threads(folder, capsys, monkeypatch):
    """A small model takes one by itself; what is asked for is taken; the text is the same."""
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    texts = [sample(capsys, folder, "--prompt=ab", *options) for options in ([], ["--threads=3"])]
    assert chosen == [1, 3]
    assert texts[0] == texts[1]
    monkeypatch.setattr(GPT, "num_parameters", lambda self: 124_000_000)
    sample(capsys, folder, "--prompt=ab")
    assert chosen == [1, 3]  # torch's choice
    assert cli.main(["sample", str(folder), "--threads=0"]) == 2
    assert "'threads' must be at least 1, got 0" in capsys.readouterr().err


def test_utf8_under_a_locale_that_is_not(folder):
    """Python then reads bytes of the command line as lone surrogates."""
    CharacterTokenizer("é").save(folder)
    GPT(GPTConfig(1, 16, 1, 2, 16)).save_pretrained(folder)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "fastllm", "sample", str(folder), "--max_new_tokens=1", "--prompt", "é"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, rb"\xe9\xe9" + b"\n"), done.stderr


def test_an_empty_prompt_file(folder, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n  \n")
    assert cli.main(["sample", str(folder), "--prompt_file", str(tmp_path / "prompts.txt")]) == 2
    assert "prompts.txt has no prompt: it is one per line, and empty lines don't count" in capsys.readouterr().err


def test_a_folder_whose_model_is_not_one(folder, capsys):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert cli.main(["sample", str(folder)]) == 2
    assert "holds no model that fastllm reads" in capsys.readouterr().err


def test_a_tokenizer_of_another_model(folder, capsys):
    CharacterTokenizer("".join(map(chr, range(200)))).save(folder)
    assert cli.main(["sample", str(folder)]) == 2
    assert "'tokenizer' must have at most the model's 27 tokens, got 200" in capsys.readouterr().err
