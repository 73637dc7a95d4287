"""The maths of value-based learning as pure functions of tensors, each with its paper and equation.

Shapes: ``B`` minibatch, ``A`` actions, ``M`` numbers per action (1 for an expected value).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def take_action(values: Tensor, action: Tensor) -> Tensor:
    """Picks each row's entry of its own action: ``values[b, action[b]]``.

    Args:
        values: One entry per action, ``[B, A, ...]``.
        action: Action indices, ``[B]``, int64.

    Returns:
        The chosen entries, ``[B, ...]``.
    """
    index = action.unsqueeze(1)
    for size in values.shape[2:]:
        index = index.unsqueeze(-1).expand(*index.shape, size)
    return values.gather(1, index).squeeze(1)


def bellman_backup(value: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """The Bellman operator ``reward + discount * value`` (Sutton and Barto 2018, equation 3.14).

    It is the same affine map for means, support atoms and quantiles, which is why every head shares it.

    Args:
        value: Value of the next state, ``[B]`` or ``[B, M]``.
        reward: Reward of the window, ``[B]``.
        discount: ``gamma ** k``, 0 where the episode terminated, ``[B]``.

    Returns:
        The backed-up value, shaped like ``value``.
    """
    for _ in value.shape[1:]:
        reward, discount = reward.unsqueeze(-1), discount.unsqueeze(-1)
    return reward + discount * value


def legal_values(q_values: Tensor, action_mask: Tensor | None) -> Tensor:
    """Q-values with minus infinity for actions that are not legal, so that no maximum or softmax chooses them.

    Args:
        q_values: ``[B, A]``.
        action_mask: True where an action is legal, ``[B, A]``; ``None`` if all are.
    """
    return q_values if action_mask is None else q_values.masked_fill(~action_mask, -torch.inf)


def soft_policy(q_values: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The softmax policy over ``q_values / temperature`` and its scaled logarithm ``temperature * log pi``.

    The largest value is taken off first and the logarithm is never that of a rounded probability, so neither a low
    temperature nor large values overflow: ``tau * log pi = q - v - tau * log sum exp((q - v) / tau)``, ``v = max q``.

    "Munchausen Reinforcement Learning" (Vieillard, Pietquin and Geist 2020), appendix B.1.

    Args:
        q_values: ``[B, A]``; minus infinity where an action is not legal, finite for at least one.
        temperature: ``tau``, above 0.

    Returns:
        ``pi`` and ``tau * log pi``, ``[B, A]`` both; 0 and minus infinity for an action that is not legal.
    """
    log_policy = torch.log_softmax((q_values - q_values.amax(dim=1, keepdim=True)) / temperature, dim=1)
    return log_policy.exp(), temperature * log_policy


def project_categorical(probabilities: Tensor, atoms: Tensor, support: Tensor) -> Tensor:
    """Moves probability from atoms anywhere onto the two neighbours of each on an evenly spaced support.

    Each atom is clamped to the support and shared out in proportion to nearness. All mass is kept, also that of an atom
    that falls exactly on the support, and so is the mean of what was not clamped.

    "A Distributional Perspective on Reinforcement Learning" (Bellemare, Dabney and Munos 2017), equation 7.

    Args:
        probabilities: ``[B, M']``.
        atoms: Where they stand, ``[B, M']``.
        support: Ascending and evenly spaced, ``[M]`` with ``M >= 2``.

    Returns:
        Probabilities on the support, ``[B, M]``.
    """
    num_atoms = support.shape[0]
    low, high = support[0], support[-1]
    position = (atoms.clamp(low, high) - low) * ((num_atoms - 1) / (high - low))
    # the last atom belongs to the interval below it: it has no upper neighbour
    lower = position.floor().clamp(max=num_atoms - 2)
    share = (position - lower).clamp(max=1.0)
    projected = torch.zeros(len(atoms), num_atoms, dtype=probabilities.dtype, device=atoms.device)
    index = lower.nan_to_num(0.0).long()  # NaN has no place, and makes its row NaN by its share
    projected.scatter_add_(1, index, probabilities * (1 - share))
    return projected.scatter_add_(1, index + 1, probabilities * share)


def cross_entropy(probabilities: Tensor, log_probabilities: Tensor) -> Tensor:
    """Cross-entropy ``-sum_m p_m log q_m`` of a prediction under a target distribution.

    The sample loss of "A Distributional Perspective on Reinforcement Learning" (Bellemare et al. 2017), algorithm 1.

    Args:
        probabilities: The target ``p``, ``[B, M]``.
        log_probabilities: The prediction ``log q``, ``[B, M]``.

    Returns:
        ``[B]``.

    Raises:
        ValueError: If the shapes differ.
    """
    _same_shape(log_probabilities, probabilities)
    return -(probabilities * log_probabilities).sum(dim=1)


def quantile_midpoints(num_quantiles: int) -> Tensor:
    """The fractions ``(2 i + 1) / (2 N)`` in the middle of ``N`` equal parts of [0, 1], ``[N]``.

    "Distributional Reinforcement Learning with Quantile Regression" (Dabney et al. 2018), lemma 2.
    """
    return (torch.arange(num_quantiles, dtype=torch.float32) + 0.5) / num_quantiles


def quantile_huber_error(prediction: Tensor, taus: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    """Quantile regression of ``N`` predicted quantiles on ``N'`` target samples, summed over ``N``, mean over ``N'``.

    With ``d_ij = target_j - prediction_i`` the error is ``sum_i mean_j |tau_i - 1{d_ij < 0}| L_kappa(d_ij)``, where
    ``L_kappa`` is the Huber error, or ``|d|`` for a ``kappa`` of 0.

    "Distributional Reinforcement Learning with Quantile Regression" (Dabney et al. 2018), equations 9 and 10. The paper
    on implicit quantiles (Dabney et al. 2018b, equation 3) divides by ``kappa``, which is the same for the usual 1.

    Args:
        prediction: Quantiles, ``[B, N]``.
        taus: The fraction each of them stands for, ``[N]`` or ``[B, N]``.
        target: Samples, ``[B, N']``.
        kappa: Where the error turns from a parabola into a line.

    Returns:
        ``[B]``.
    """
    difference = target.unsqueeze(1) - prediction.unsqueeze(2)
    size = difference.abs()
    error = torch.where(size <= kappa, 0.5 * difference.square(), kappa * (size - 0.5 * kappa)) if kappa else size
    weight = (taus.unsqueeze(-1) - (difference.detach() < 0).to(taus.dtype)).abs()
    return (weight * error).mean(dim=2).sum(dim=1)


def cosine_features(taus: Tensor, num_cosines: int) -> Tensor:
    """Cosines ``cos(pi i tau)`` for ``i = 0 .. num_cosines - 1``: a fraction as a network can read it.

    "Implicit Quantile Networks for Distributional Reinforcement Learning" (Dabney et al. 2018), equation 4; several
    implementations begin with ``i = 1``.

    Args:
        taus: Fractions in [0, 1], any shape.
        num_cosines: How many.

    Returns:
        ``[*taus.shape, num_cosines]``.
    """
    multiples = torch.pi * torch.arange(num_cosines, dtype=taus.dtype, device=taus.device)
    return torch.cos(taus.unsqueeze(-1) * multiples)


def dueling_aggregate(value: Tensor, advantage: Tensor) -> Tensor:
    """Combines the two streams with the mean over *actions* taken off the advantages, so that ``mean_a Q == V``.

    "Dueling Network Architectures for Deep Reinforcement Learning" (Wang et al. 2016), equation 9.

    Args:
        value: State values, ``[B, 1, M]``.
        advantage: Advantages, ``[B, A, M]``.

    Returns:
        Action values, ``[B, A, M]``.
    """
    return value + advantage - advantage.mean(dim=1, keepdim=True)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error ``(prediction - target) ** 2`` per element; its slope at a difference ``d`` is ``2 d``.

    "Playing Atari with Deep Reinforcement Learning" (Mnih et al. 2013), equation 2.

    Raises:
        ValueError: If the shapes differ; broadcasting ``[B]`` against ``[B, 1]`` would silently give ``[B, B]``.
    """
    _same_shape(prediction, target)
    return (prediction - target).square()


def huber_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Huber error with threshold 1 per element: ``d**2 / 2`` for ``|d| <= 1``, else ``|d| - 1/2``; slope at most 1.

    The "clipped error" of "Human-level control through deep reinforcement learning" (Mnih et al. 2015, Methods), as a
    loss ("Robust Estimation of a Location Parameter", Huber 1964).

    Raises:
        ValueError: If the shapes differ.
    """
    _same_shape(prediction, target)
    return F.huber_loss(prediction, target, reduction="none")


def interquartile_mean(values: Tensor) -> Tensor:
    """Mean of the middle half: the lowest and the highest quarter, each rounded down, are left out.

    "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal et al. 2021), section 4.3.

    Args:
        values: Scores, ``[..., N]`` with ``N >= 1``.

    Returns:
        ``[...]``; the plain mean where ``N < 4``.
    """
    cut = values.shape[-1] // 4
    ordered = torch.sort(values, dim=-1).values
    return ordered[..., cut : values.shape[-1] - cut].mean(dim=-1)


def _same_shape(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape")


def adam_step(
    parameter: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    gradient: Tensor,
    rate: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of Adam, as :class:`torch.optim.Adam` takes it, without changing anything.

    "Adam: A Method for Stochastic Optimization" (Kingma and Ba 2015), algorithm 1; "Decoupled Weight Decay
    Regularization" (Loshchilov and Hutter 2019), algorithm 2.

    Args:
        parameter: Of any shape.
        mean: First moment, shaped like it.
        square: Second moment, shaped like it.
        step: How many steps were taken before, a scalar.
        gradient: Shaped like the parameter.
        rate: Learning rate, a scalar.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: At least 0.
        decoupled: Whether weights decay beside the gradient (AdamW) or as a part of it.

    Returns:
        Parameter, both moments and the number of steps after it.
    """
    step, rate = step + 1, rate.double()
    if weight_decay and decoupled:
        parameter = parameter * (1 - rate * weight_decay).float()
    elif weight_decay:
        gradient = gradient + weight_decay * parameter
    mean = torch.lerp(mean, gradient, 1 - beta1)
    square = square * beta2 + gradient * gradient * (1 - beta2)
    # in float64, where 1 - 0.999 ** 1 is not a difference of nearly equal numbers; scalars cost nothing
    scale = (rate / (1 - beta1 ** step.double())).float()
    root = (1 - beta2 ** step.double()).sqrt().float()
    return parameter - scale * (mean / (square.sqrt() / root + eps)), mean, square, step
