"""sb3-contrib: call `seqkernels.convert` on `agent.policy` before `learn`.

That reaches the actor's LSTM and the critic's. A loaded agent has torch.nn's layers: convert it
again.
"""

import gymnasium
import numpy
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

import seqkernels


class Masked(gymnasium.ObservationWrapper):
    """A pole that shows where it is, and not how fast it moves: the agent has to remember."""

    def observation(self, observation: numpy.ndarray) -> numpy.ndarray:  # noqa: D102
        return observation * numpy.float32([1, 0, 1, 0])


def train(ours: bool = True, steps: int = 2048) -> float:
    """Let an agent act for some steps and return the last value loss."""
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0, wrapper_class=Masked)
    agent = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=min(128, steps // 8),
        batch_size=256,
        n_epochs=5,
        policy_kwargs={"lstm_hidden_size": 128},
        seed=0,
    )
    if ours:
        seqkernels.convert(agent.policy)
    agent.learn(total_timesteps=steps)
    return float(agent.logger.name_to_value["train/value_loss"])


if __name__ == "__main__":
    print(train())
