"""Value-based deep reinforcement learning as a Lightning citizen."""

from lightning_dqn.categorical import CategoricalHead as CategoricalHead
from lightning_dqn.categorical import CategoricalReturn as CategoricalReturn
from lightning_dqn.collector import ExperienceCollector as ExperienceCollector
from lightning_dqn.datamodule import ExperienceDataModule as ExperienceDataModule
from lightning_dqn.distributions import ExpectedReturn as ExpectedReturn
from lightning_dqn.distributions import ReturnDistribution as ReturnDistribution
from lightning_dqn.evaluation import EvaluationEpisodes as EvaluationEpisodes
from lightning_dqn.exploration import Boltzmann as Boltzmann
from lightning_dqn.exploration import EpsilonGreedy as EpsilonGreedy
from lightning_dqn.exploration import Explorer as Explorer
from lightning_dqn.exploration import EZGreedy as EZGreedy
from lightning_dqn.exploration import Greedy as Greedy
from lightning_dqn.heads import DuelingStream as DuelingStream
from lightning_dqn.heads import ExpectedHead as ExpectedHead
from lightning_dqn.heads import Head as Head
from lightning_dqn.heads import LinearStream as LinearStream
from lightning_dqn.heads import Stream as Stream
from lightning_dqn.masks import ActionMask as ActionMask
from lightning_dqn.module import DQNLightningModule as DQNLightningModule
from lightning_dqn.networks import MLPTorso as MLPTorso
from lightning_dqn.networks import NatureTorso as NatureTorso
from lightning_dqn.networks import QNetwork as QNetwork
from lightning_dqn.networks import Torso as Torso
from lightning_dqn.noisy import NoisyLinear as NoisyLinear
from lightning_dqn.prioritized import PrioritizedReplayBuffer as PrioritizedReplayBuffer
from lightning_dqn.quantile import ImplicitQuantileHead as ImplicitQuantileHead
from lightning_dqn.quantile import ImplicitQuantileReturn as ImplicitQuantileReturn
from lightning_dqn.quantile import QuantileHead as QuantileHead
from lightning_dqn.quantile import QuantileReturn as QuantileReturn
from lightning_dqn.replay import ReplayBuffer as ReplayBuffer
from lightning_dqn.replay import ReplayDataset as ReplayDataset
from lightning_dqn.schedules import EpisodeDecay as EpisodeDecay
from lightning_dqn.schedules import ExponentialSchedule as ExponentialSchedule
from lightning_dqn.schedules import LinearSchedule as LinearSchedule
from lightning_dqn.schedules import Schedule as Schedule
from lightning_dqn.signals import GracefulInterrupt as GracefulInterrupt
from lightning_dqn.sum_tree import SumTree as SumTree
from lightning_dqn.targets import DoubleQLearning as DoubleQLearning
from lightning_dqn.targets import MunchausenQLearning as MunchausenQLearning
from lightning_dqn.targets import QLearning as QLearning
from lightning_dqn.targets import TargetRule as TargetRule
from lightning_dqn.transition import ReplayBatch as ReplayBatch
from lightning_dqn.transition import Transition as Transition
from lightning_dqn.wrappers import UnitObservation as UnitObservation

__version__ = "0.1.0"
