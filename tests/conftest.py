"""Tiny tokenizers and models of each family, made on the spot: no network, a few hundred rows."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import random
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import nbformat
import pandas as pd
import papermill
import pytest
import torch
from hypothesis import HealthCheck, settings
from papermill.engines import Engine, papermill_engines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)
from transformers.utils import logging

from vocab_pruning.core import minilm_directory

NOISE = ["ignore::DeprecationWarning", "ignore:.*lr_scheduler.step.*:UserWarning"]
NBS = Path(__file__).parent.parent / "nbs"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TASKS = {"bare": AutoModel, "classification": AutoModelForSequenceClassification, "masked": AutoModelForMaskedLM}

settings.register_profile("tiny", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tiny")


# What takes longest, first: then no worker is left alone with it at the end. Modules that are not named follow in their own order.
SLOWEST = ["docs", "ship", "first_law", "run", "site", "sweep", "export", "training", "surgery", "losparse", "budget_targets",
           "checkpoint", "families", "resegment", "retrieval", "report", "benchmark", "search", "extras", "scorers", "own_data", "cli"]


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the modules of many tests, which are not those that take long
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for line in NOISE:
        config.addinivalue_line("filterwarnings", line)


WITHOUT_US = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vocab_pruning", "skeletoken"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
try:
    import vocab_pruning
except ImportError:
    pass
else:
    raise AssertionError("vocab_pruning can be imported here")
"""  # begins a program for a process of its own, in which neither this library nor its tool for tokenizers can be imported


# Tokenizers


def make_words(n: int, seed: int = 0) -> list[str]:
    "`n` distinct words of two to six letters."
    draw, words = random.Random(seed), {}
    while len(words) < n:
        words["".join(draw.choices(LETTERS, k=draw.randint(2, 6)))] = None
    return list(words)


WORDS = make_words(120)


def make_texts(n: int, seed: int = 0) -> list[str]:
    "`n` documents of up to twelve words, with a Zipf-like tail; some are empty, some hold letters and words no vocabulary has whole."
    draw = random.Random(seed)
    words = [*WORDS[:60], *make_words(5, seed=1)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=draw.randint(0, 12))) for _ in range(n)]


TEXTS = make_texts(60)


def _fast(tokenizer: Tokenizer, first: str, last: str, **special: str) -> PreTrainedTokenizerFast:
    "`tokenizer` framed by the special tokens `first` and `last`."
    frame = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=frame)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token=first, sep_token=last, model_max_length=48,
                                   model_input_names=["input_ids", "attention_mask"], **special)


BRACKETS = dict(pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
ANGLES = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


def wordpiece() -> PreTrainedTokenizerFast:
    "WordPiece over letters and words, specials first, as BERT has them."
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _fast(tokenizer, "[CLS]", "[SEP]", **BRACKETS)


def byte_bpe(**special: str) -> PreTrainedTokenizerFast:
    "Byte-level BPE, specials last, as ModernBERT has them."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([" ".join(WORDS)], trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    return _fast(tokenizer, "[CLS]", "[SEP]", **(special or BRACKETS))


def unigram(byte_fallback: bool = False) -> PreTrainedTokenizerFast:
    "Unigram over all letters and random scored pieces, as XLM-RoBERTa has it; with `byte_fallback` also the 256 bytes."
    draw = random.Random(2)
    parts = [word[: draw.randint(2, len(word))] for word in WORDS]
    pieces = [*ANGLES.values(), "▁", *LETTERS, *(f"▁{word}" for word in WORDS[::2]), *dict.fromkeys(parts)]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    scored = [(piece, -draw.uniform(2, 6) * (2 if len(piece) == 1 else 1)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=pieces.index("<unk>"), byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _fast(tokenizer, "<s>", "</s>", **ANGLES)


def byte_bpe_without_unk() -> PreTrainedTokenizerFast:
    "Byte-level BPE whose unknown token has no role, as GPT-2's descendants have it."
    return byte_bpe(pad_token="[PAD]", mask_token="[MASK]")


def unigram_with_bytes() -> PreTrainedTokenizerFast:
    "Unigram with the 256 bytes to fall back on."
    return unigram(byte_fallback=True)


# Models


@dataclass(frozen=True)
class Family:
    "A tokenizer, the configuration class that goes with it, and the rows V that its models have."

    make_tokenizer: object
    config_class: type
    spare_rows: int = 0
    options: tuple = ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return _tokenizer(self.make_tokenizer)

    def config(self, **options):
        "A configuration whose ids are the tokenizer's own."
        roles = ("pad", "bos", "eos", "cls", "sep")
        ids = {f"{role}_token_id": getattr(self.tokenizer, f"{role}_token_id") for role in roles}
        size = dict(vocab_size=len(self.tokenizer) + self.spare_rows, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                    intermediate_size=24, max_position_embeddings=64, initializer_range=0.3, num_labels=3)
        return self.config_class(**ids, **size | dict(self.options) | options)


@cache
def _tokenizer(make) -> PreTrainedTokenizerFast:
    return make()


FAMILIES = {
    "wordpiece": Family(wordpiece, BertConfig),
    "bpe": Family(byte_bpe, ModernBertConfig, 16, (("num_hidden_layers", 4), ("global_attn_every_n_layers", 2), ("local_attention", 4))),
    "unigram": Family(unigram, XLMRobertaConfig),
}
ODD_FAMILIES = {"bytes": Family(unigram_with_bytes, XLMRobertaConfig), "no unk": Family(byte_bpe_without_unk, BertConfig)}


def build(family: str | Family, task: str = "classification", seed: int = 0, **options):
    "A random model in evaluation mode; no bias is zero, the padding row neither."
    config = (FAMILIES[family] if isinstance(family, str) else family).config(**options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TASKS[task].from_config(config).eval()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith("bias"):
                    tensor.normal_()
            rows = model.get_input_embeddings()
            rows.weight[rows.padding_idx].normal_()
    return model


@cache
def shared(family: str, task: str = "classification", tie: bool = True):
    "The one `build` of its kind in this process: for tests that only read it."
    return build(family, task, tie_word_embeddings=tie)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> str:
    "Each tokenizer family by name."
    return request.param


@pytest.fixture(scope="session", params=TASKS)
def task(request) -> str:
    "Each class of model by name."
    return request.param


@pytest.fixture
def model(family, task):
    "A fresh tiny model of each family and class."
    return build(family, task)


@pytest.fixture
def tokenizer(family):
    "The family's tokenizer."
    return FAMILIES[family].tokenizer


# Inputs and outputs


def batch(ids: torch.Tensor, pad_id: int, padding: int = 0) -> dict[str, torch.Tensor]:
    "Model inputs from `ids` (n, length): the last `padding` places of the last row are padding."
    ids, mask = ids.clone(), torch.ones_like(ids)
    if padding:
        ids[-1, -padding:], mask[-1, -padding:] = pad_id, 0
    return dict(input_ids=ids, attention_mask=mask)


def draw_ids(pool: torch.Tensor, seed: int, shape: tuple[int, int] = (2, 12)) -> torch.Tensor:
    "Ids of `shape` drawn from `pool`."
    generator = torch.Generator().manual_seed(seed)
    return pool[torch.randint(len(pool), shape, generator=generator)]


def real_positions(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    "Which positions of model `inputs` are no padding: bool (n, length)."
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()


@torch.no_grad()
def outputs(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the model gives by name: each layer's hidden states and the logits or the pooled output.

    Values (n, length, …) are given at the real positions alone, (positions, …): what stands at padding is read by nobody."""
    result = model(**inputs, output_hidden_states=True)
    layers = {f"layer {i}": hidden for i, hidden in enumerate(result.hidden_states)}
    values = layers | {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}
    real = real_positions(inputs)
    return {name: value[real] if value.dim() == 3 else value for name, value in values.items()}


def assert_near(actual: torch.Tensor, expected: torch.Tensor, rel: float = 1e-5):
    """Assert that no entry of `actual` is farther from `expected` than `rel` times the largest of `expected`'s magnitudes.

    Kernels differ in the order of their float32 sums. What that changes grows with the summands, not with their sum, so entries
    near 0 have no relative precision of their own. 1e-5 is 84 float32 epsilons, for sums of some tens of terms in a few layers."""
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=rel * scale)


def state(model) -> dict[str, torch.Tensor]:
    "A copy of the model's parameters and saved buffers."
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def files(directory) -> dict[str, bytes]:
    "What lies below `directory`, byte for byte."
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    "Names of the tensors that are not bit-equal."
    return [name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name])]


# Notebooks


class InThisProcess(Engine):
    "papermill's engine without a kernel: the cells run here, where everything that a new process would import is there already."

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, execution_timeout=None, **kwargs):
        from execnb.shell import CaptureShell

        shell = CaptureShell()
        warnings.resetwarnings()
        for silent in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):  # as Python's own filters do
            warnings.simplefilter("ignore", silent)
        warnings.showwarning = lambda text, kind, file, line, *_: sys.stderr.write(warnings.formatwarning(text, kind, file, line))
        for number, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type != "code":
                continue
            nb_man.cell_start(cell, number)
            cell.outputs = [nbformat.from_dict(output) for output in shell.run(cell.source)]
            if shell.exc:
                nb_man.cell_exception(cell, cell_index=number, exception=shell.exc)
                break
            nb_man.cell_complete(cell, cell_index=number)


papermill_engines.register("here", InThisProcess)


@contextlib.contextmanager
def undone(directory: Path):
    "A block in `directory` after which what a notebook sets for its whole process is as it was."
    from IPython.core.interactiveshell import InteractiveShell

    main, shell, environment = sys.modules["__main__"], InteractiveShell._instance, dict(os.environ)
    shown = pd.option_context("display.float_format", pd.get_option("display.float_format"))
    backend = mpl.get_backend()
    try:
        with contextlib.chdir(directory), warnings.catch_warnings(), shown, mpl.rc_context(), torch.random.fork_rng():
            yield
    finally:
        mpl.use(backend)
        sys.modules["__main__"], InteractiveShell._instance = main, shell
        os.environ.clear()
        os.environ.update(environment)


def run_notebook(name: str, executed: Path, kernel: bool = False, **parameters) -> Path:
    """Execute `name` of nbs/ with `parameters` as papermill does, and return the `executed` page.

    It runs in this process, which saves the seconds that a new one takes to import everything; warnings reach the page all the same.
    What only a process of its own shows, such as progress bars that are widgets, needs `kernel`. Raises `PapermillExecutionError` where a cell fails."""
    how = dict(cwd=str(NBS)) if kernel else dict(engine_name="here")
    with contextlib.nullcontext() if kernel else undone(NBS):
        papermill.execute_notebook(NBS / name, executed, parameters, progress_bar=False, **how)
    return executed


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> str:
    "The directory of a small random BERT that reads letters and a few words: for runs of which the weights do not matter."
    directory = tmp_path_factory.mktemp("models") / "tiny"
    family = FAMILIES["wordpiece"]
    sizes = dict(hidden_size=32, intermediate_size=64, max_position_embeddings=160, initializer_range=0.02)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        TASKS["bare"].from_config(family.config(**sizes)).save_pretrained(directory)
    family.tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def narrow_minilm(tmp_path_factory) -> str:
    "The directory of a random model of 16 columns and two layers that has MiniLM's tokenizer and rows: for what its size and its words decide."
    if minilm_directory() is None:
        pytest.skip("needs the extra `offline` (MiniLM's tokenizer)")
    directory = tmp_path_factory.mktemp("models") / "narrow-minilm"
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(BertConfig.from_pretrained(minilm_directory(), **sizes)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(minilm_directory()).save_pretrained(directory)
    return str(directory)


class Unread:
    "Texts that must not be read."

    def __iter__(self):
        return self.read()

    def read(self):
        raise AssertionError("the texts were read")
        yield
