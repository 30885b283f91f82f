"""Compares the tokenizers that `tenon import` makes from vocab.txt, from vocab.json and merges.txt, and from tokenizer.model, with
those of transformers and with SentencePiece, on odd strings. The vocabularies are learnt from a text.

Needs the packages of tools/fixtures/requirements.txt and a built `tenon`:

    python tools/check_tokenizers.py TEXT [TENON]
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import sentencepiece
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

ODD = [
    "Hello, World!", "", "   ", "Ünïcödé Ñandú café", "日本語 テキスト 中文", "don't stop\n\nnew  line\ttab", "🦀🚀 emoji", "a" * 150,
    "[CLS] a [SEP] [MASK]x <s>y</s> <mask> <pad> <|endoftext|>z", "A\u0301 e\u0301 \u200b\u00a0x\ufeff", "\x00\x01control", "3.14 $5",
    "ＦＵＬＬwidth ﬁ", "İstanbul ß", "\r\nwin\r\n", "[UNK] extra_token and SECOND", "   leading", "trailing   ",
]  # fmt: skip
MASK = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}


def words(text, lower):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return {"vocab.txt": "".join(word + "\n" for word, _ in vocabulary)}


def pairs(text, special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n"}


def pieces(text, into, **settings):
    lines = [line for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(into / "tokenizer"), minloglevel=2, hard_vocab_limit=False, **settings
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(into / "tokenizer.model"))


LLAMA = dict(
    model_type="bpe", vocab_size=1200, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
    split_digits=True, allow_whitespace_only_pieces=True,
)  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "llama, no prefix": dict(LLAMA, add_dummy_prefix=False),
    "pairs": dict(model_type="bpe", vocab_size=1200),
    "pairs, lower case": dict(model_type="bpe", vocab_size=1200, normalization_rule_name="nmt_nfkc_cf"),
    "unigram": dict(model_type="unigram", vocab_size=1200),
    "unigram, bytes": dict(model_type="unigram", vocab_size=1200, byte_fallback=True, normalization_rule_name="nfkc"),
    "unigram, over spaces": dict(model_type="unigram", vocab_size=600, split_by_whitespace=False),
}


def sentence_pieces(text, folder, tenon, strings):
    """What differs for each model: from SentencePiece without special tokens, from transformers with them."""
    for name, settings in MODELS.items():
        into = folder / name.replace(", ", "-").replace(" ", "-")
        into.mkdir()
        processor = pieces(text, into, **settings)
        for legacy in (True, False) if name == "llama" else (True,):
            config = dict(tokenizer_class="LlamaTokenizer", legacy=legacy, add_bos_token=True)
            (into / "tokenizer_config.json").write_text(json.dumps(config))
            # Written by transformers too where it was asked before.
            (into / "tokenizer.json").unlink(missing_ok=True)
            theirs = None if legacy else hf.AutoTokenizer.from_pretrained(into)
            model("llama", 1600).save_pretrained(into)
            out = into.with_suffix(f".{legacy}")
            subprocess.run([tenon, "import", into, "--out", out], check=True, capture_output=True)
            ours = Tokenizer.from_file(str(out / "tokenizer.json"))
            if theirs:
                yield name + ", not legacy", [(t, theirs(t)["input_ids"], ours.encode(t).ids) for t in strings]
            else:
                # The library's normaliser replaces whole graphemes, where SentencePiece takes the longest prefix.
                marks = () if "identity" in settings.values() else ("\u0301", "🏽")
                plain = [t for t in strings if not any(no in t for no in ("<s>", "<unk>", "</s>", *marks))]
                yield name, [(t, [1] + processor.encode(t), ours.encode(t).ids) for t in plain]


def cases(text):
    lower, cased = words(text, True), words(text, False)
    gpt2, roberta = pairs(text, ["<|endoftext|>"]), pairs(text, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    added = {"added_tokens.json": json.dumps({"SECOND": 1501, "extra_token": 1500})}
    yield "bert", "bert", lower, {}
    yield "bert, added", "bert", lower | added, dict(tokenizer_class="BertTokenizer")
    yield "bert, cased", "bert", cased, dict(do_lower_case=False)
    yield "bert, settings", "bert", lower, dict(strip_accents=False, tokenize_chinese_chars=False)
    yield "bert, lines of Windows", "bert", {"vocab.txt": lower["vocab.txt"].replace("\n", "\r\n")}, {}
    yield "distilbert", "distilbert", lower, dict(tokenizer_class="DistilBertTokenizerFast")
    yield "gpt2", "gpt2", gpt2, {}
    yield "gpt2, space", "gpt2", gpt2, dict(add_prefix_space=True)
    yield "gpt2, begun", "gpt2", gpt2, dict(add_bos_token=True, pad_token="<pad>")
    yield "roberta", "roberta", roberta, {}
    yield "roberta, mask", "roberta", roberta, dict(tokenizer_class="RobertaTokenizer", mask_token=MASK)


def model(kind, vocabulary):
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    if kind == "gpt2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=1, n_head=2))
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=vocabulary, **sizes))
    if kind == "distilbert":
        return hf.DistilBertModel(hf.DistilBertConfig(vocab_size=vocabulary, dim=8, hidden_dim=8, n_layers=1, n_heads=2))
    config = (hf.BertConfig if kind == "bert" else hf.RobertaConfig)(vocab_size=vocabulary, **sizes)
    return (hf.BertModel if kind == "bert" else hf.RobertaModel)(config)


def differences(theirs, ours, strings):
    for text in strings:
        wanted, found = theirs(text)["input_ids"], ours.encode(text).ids
        if wanted != found:
            yield text, wanted, found
        wanted, found = theirs(text, "and two"), ours.encode(text, "and two")
        if wanted["input_ids"] != found.ids or wanted.get("token_type_ids", found.type_ids) != found.type_ids:
            yield (text, "and two"), wanted["input_ids"], found.ids


def rare(some):
    """A string of letters, digits, spaces, and characters from all over."""
    kinds = ["abc XYZ", "0123456789", "   \t\n", "éüñßøç", "日本語中文한국어", "🦀🚀👍🏽", "ﬁ½Ⅳ①ＡＢ", "αβγДжЯ", "▁_-.,;!?", "\u00a0\u3000\u200b"]
    return "".join(some.choice(some.choice(kinds)) for _ in range(some.randint(1, 30)))


def main(text, tenon="tenon"):
    hf.logging.set_verbosity_error()
    text = pathlib.Path(text).read_text()[:300_000]
    some = random.Random(1)
    strings = ODD + [" ".join(some.sample(text.split(), 12)) for _ in range(20)]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, files, settings in cases(text):
            into = pathlib.Path(folder) / name.replace(", ", "-").replace(" ", "-")
            into.mkdir()
            files |= {"config.json": json.dumps({"model_type": kind})}
            files |= {"tokenizer_config.json": json.dumps(settings)} if settings else {}
            for file, content in files.items():
                (into / file).write_text(content, newline="")
            theirs = hf.AutoTokenizer.from_pretrained(into)
            model(kind, 1600).save_pretrained(into)
            out = into.with_suffix(".out")
            subprocess.run([tenon, "import", into, "--out", out], check=True, capture_output=True)
            found = list(differences(theirs, Tokenizer.from_file(str(out / "tokenizer.json")), strings))
            print("FAIL" if found else "ok  ", name, *found[:1])
            wrong += bool(found)
        many = strings + [rare(some) for _ in range(300)] + [" ".join(some.sample(text.split(), 12)) for _ in range(100)]
        for name, compared in sentence_pieces(text, pathlib.Path(folder), tenon, many):
            found = [one for one in compared if one[1] != one[2]]
            print("FAIL" if found else "ok  ", name, f"{len(found)} of {len(compared)}", *found[:3])
            wrong += bool(found)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
