"""torchrl: train inside `seqkernels.patch()`.

`LSTMModule` asks whether its layer is a torch.nn.LSTM, which a converted layer is not.
"""

import contextlib

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.modules import MLP, LSTMModule, QValueModule, set_recurrent_mode
from torchrl.objectives import DQNLoss

import seqkernels

STATE = {"h": torch.zeros(1, 128), "c": torch.zeros(1, 128)}
NEXT = [("next", "h"), ("next", "c")]


def rollouts(rows: int, length: int) -> TensorDict:
    """Random transitions of episodes that end, and begin anew, inside the rows."""
    observation = torch.randn(rows, length + 1, 16)
    done = torch.rand(rows, length, 1) < 0.05
    begin = torch.cat([torch.ones(rows, 1, 1, dtype=torch.bool), done], 1)
    state = {name: value.expand(rows, length, 1, 128) for name, value in STATE.items()}
    action = torch.nn.functional.one_hot(torch.randint(4, (rows, length)), 4)
    now = {"observation": observation[:, :-1], "is_init": begin[:, :-1], **state}
    after = {"observation": observation[:, 1:], "is_init": begin[:, :-1], **state}
    after |= {"reward": torch.randn(rows, length, 1), "done": done, "terminated": done}
    return TensorDict({**now, "action": action, "next": after}, batch_size=[rows, length])


def train(ours: bool = True, steps: int = 20) -> float:
    """Train a Q-network on whole rollouts for some steps and return the last loss."""
    torch.manual_seed(0)
    keys = {"in_keys": ["observation", "h", "c"], "out_keys": ["features", *NEXT]}
    lstm = LSTMModule(input_size=16, hidden_size=128, **keys)
    mlp = MLP(in_features=128, out_features=4, num_cells=[64])
    head = TensorDictModule(mlp, in_keys=["features"], out_keys=["action_value"])
    policy = TensorDictSequential(lstm, head, QValueModule(action_space="one-hot"))
    objective = DQNLoss(policy, action_space="one-hot", delay_value=True)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-3)
    data = rollouts(rows=16, length=80)
    with seqkernels.patch() if ours else contextlib.nullcontext(), set_recurrent_mode(True):
        for _ in range(steps):
            loss = objective(data.clone())["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


if __name__ == "__main__":
    print(train())
