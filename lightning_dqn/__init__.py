"""Value-based deep reinforcement learning as a Lightning citizen."""

from lightning_dqn.collector import ExperienceCollector as ExperienceCollector
from lightning_dqn.experience.datamodule import ExperienceDataModule as ExperienceDataModule
from lightning_dqn.experience.evaluation import EvaluationEpisodes as EvaluationEpisodes
from lightning_dqn.experience.exploration import Boltzmann as Boltzmann
from lightning_dqn.experience.exploration import EpsilonGreedy as EpsilonGreedy
from lightning_dqn.experience.exploration import Explorer as Explorer
from lightning_dqn.experience.exploration import EZGreedy as EZGreedy
from lightning_dqn.experience.exploration import Greedy as Greedy
from lightning_dqn.experience.masks import ActionMask as ActionMask
from lightning_dqn.experience.prioritized import PrioritizedReplayBuffer as PrioritizedReplayBuffer
from lightning_dqn.experience.replay import ReplayBuffer as ReplayBuffer
from lightning_dqn.experience.replay import ReplayDataset as ReplayDataset
from lightning_dqn.experience.sum_tree import SumTree as SumTree
from lightning_dqn.experience.wrappers import UnitObservation as UnitObservation
from lightning_dqn.learner.categorical import CategoricalHead as CategoricalHead
from lightning_dqn.learner.categorical import CategoricalReturn as CategoricalReturn
from lightning_dqn.learner.distributions import ExpectedReturn as ExpectedReturn
from lightning_dqn.learner.distributions import ReturnDistribution as ReturnDistribution
from lightning_dqn.learner.heads import DuelingStream as DuelingStream
from lightning_dqn.learner.heads import ExpectedHead as ExpectedHead
from lightning_dqn.learner.heads import Head as Head
from lightning_dqn.learner.heads import LinearStream as LinearStream
from lightning_dqn.learner.heads import Stream as Stream
from lightning_dqn.learner.module import DQNLightningModule as DQNLightningModule
from lightning_dqn.learner.networks import MLPTorso as MLPTorso
from lightning_dqn.learner.networks import NatureTorso as NatureTorso
from lightning_dqn.learner.networks import QNetwork as QNetwork
from lightning_dqn.learner.networks import Torso as Torso
from lightning_dqn.learner.noisy import NoisyLinear as NoisyLinear
from lightning_dqn.learner.quantile import ImplicitQuantileHead as ImplicitQuantileHead
from lightning_dqn.learner.quantile import ImplicitQuantileReturn as ImplicitQuantileReturn
from lightning_dqn.learner.quantile import QuantileHead as QuantileHead
from lightning_dqn.learner.quantile import QuantileReturn as QuantileReturn
from lightning_dqn.learner.targets import DoubleQLearning as DoubleQLearning
from lightning_dqn.learner.targets import MunchausenQLearning as MunchausenQLearning
from lightning_dqn.learner.targets import QLearning as QLearning
from lightning_dqn.learner.targets import TargetRule as TargetRule
from lightning_dqn.schedules import EpisodeDecay as EpisodeDecay
from lightning_dqn.schedules import ExponentialSchedule as ExponentialSchedule
from lightning_dqn.schedules import LinearSchedule as LinearSchedule
from lightning_dqn.schedules import Schedule as Schedule
from lightning_dqn.signals import GracefulInterrupt as GracefulInterrupt
from lightning_dqn.transition import ReplayBatch as ReplayBatch
from lightning_dqn.transition import Transition as Transition

__version__ = "0.1.0"
