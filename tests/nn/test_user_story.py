"""What a user does: train with torch, convert, train on, save, and load back into plain torch."""

import torch
from test_convert import Tagger
from tolerance import assert_parity
from torch.nn import functional as F

import seqkernels


def _train(model, optimiser, batches):
    losses = []
    for tokens, tags in batches:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tags.flatten())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_train_convert_train_save_load(tmp_path):
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(12):
        tokens = torch.randint(20, (8, 7), generator=generator)
        batches.append((tokens, (tokens + tokens.roll(1, 1)) % 5))
    torch.manual_seed(0)
    model, plain = Tagger(), Tagger()
    plain.load_state_dict(model.state_dict())
    optimisers = [torch.optim.Adam(m.parameters(), 0.02) for m in (model, plain)]
    for m, optimiser in zip((model, plain), optimisers, strict=True):
        torch.manual_seed(1)
        _train(m, optimiser, batches[:4])

    seqkernels.convert(model)
    runs = []
    for m, optimiser in zip((model, plain), optimisers, strict=True):
        torch.manual_seed(2)  # equal dropout masks
        runs.append(_train(m, optimiser, batches[4:] * 3))
    ours, theirs = (torch.tensor(losses) for losses in runs)
    assert torch.allclose(ours, theirs, rtol=1e-3)
    assert ours[-8:].mean() < ours[:8].mean()

    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = Tagger()
    loaded.load_state_dict(torch.load(tmp_path / "model.pt"), strict=True)
    model.eval()
    loaded.eval()
    tokens = batches[0][0]
    assert_parity(model(tokens), loaded(tokens), loaded.double()(tokens), "output")


def test_whole_converted_model_saved_and_reverted(tmp_path):
    model = seqkernels.convert(Tagger()).eval()
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    tokens = torch.randint(20, (3, 7))
    assert torch.equal(loaded(tokens), model(tokens))
    reverted = seqkernels.revert(loaded)
    assert torch.allclose(reverted(tokens), model(tokens), atol=1e-6)
