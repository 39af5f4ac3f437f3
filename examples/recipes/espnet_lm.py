"""espnet: train and decode inside `seqkernels.patch()`.

Its recurrent language model asks whether its layer is a torch.nn.LSTM, which a converted layer
is not.
"""

import contextlib

import torch
from espnet.nets.batch_beam_search import BatchBeamSearch
from espnet2.lm.espnet_model import ESPnetLanguageModel
from espnet2.lm.seq_rnn_lm import SequentialRNNLM

import seqkernels

VOCABULARY = 200


def train(ours: bool = True, steps: int = 20) -> float:
    """Train a language model for some steps and return the score of the best of its sentences."""
    torch.manual_seed(0)
    text = torch.randint(1, VOCABULARY - 1, (steps, 16, 60))
    lengths = torch.randint(20, 61, (steps, 16))
    lengths[:, 0] = 60
    model = ESPnetLanguageModel(SequentialRNNLM(VOCABULARY, unit=256), VOCABULARY)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with seqkernels.patch() if ours else contextlib.nullcontext():
        for batch in zip(text, lengths, strict=True):
            loss, _, _ = model(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last = VOCABULARY - 1  # the symbol that begins and ends a sentence
        search = BatchBeamSearch({"lm": model.lm}, {"lm": 1.0}, 10, VOCABULARY, last, last)
        with torch.no_grad():
            best, *_ = search.eval()(torch.zeros(50, 1))
    return float(best.score)


if __name__ == "__main__":
    print(train())
