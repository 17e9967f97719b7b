"""Losses and metrics of our own, on `keras.ops` alone, so that they run on every Keras backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cxr_pipeline.models.backend import keras

if TYPE_CHECKING:
    import keras as _keras
else:
    _keras = keras()
_ops = _keras.ops


@_keras.saving.register_keras_serializable(package="cxr")
class DiceCrossEntropy(_keras.losses.Loss):
    """Soft Dice loss plus binary cross-entropy, on probabilities; each with a weight, 0 leaves it out.

    Inputs are (N, H, W, 1) in [0, 1]. The Dice term is taken film by film (Milletari et al. 2016, V-Net, with
    the sums unsquared), so that small lungs weigh as much as large ones. 0 is perfect.
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        entropy_weight: float = 1.0,
        name: str = "dice_cross_entropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.dice_weight, self.entropy_weight = dice_weight, entropy_weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One loss a film, shape (N,)."""
        y_true = _ops.cast(y_true, y_pred.dtype)
        axes = (1, 2, 3)
        common = _ops.sum(y_true * y_pred, axes)
        total = _ops.sum(y_true, axes) + _ops.sum(y_pred, axes)
        dice = 1.0 - (2.0 * common + 1.0) / (total + 1.0)
        entropy = _ops.mean(_ops.binary_crossentropy(y_true, y_pred), axes)
        return self.dice_weight * dice + self.entropy_weight * entropy

    def get_config(self) -> dict:
        """What the loss is made again from."""
        return {**super().get_config(), "dice_weight": self.dice_weight, "entropy_weight": self.entropy_weight}


_ROBUST = 0.7  # q of the generalized cross-entropy, as its authors chose it


def _surprise(p: Any, q: float) -> Any:
    """What a probability `p` for the truth costs: -log p; or, with `q` above 0, (1 - p^q) / q, which is bounded.

    A film that the network holds for something else costs at most 1 / q and moves the weights little: labels that are
    wrong are not learned by heart (Zhang and Sabuncu 2018, generalized cross-entropy).
    """
    return (1.0 - p**q) / q if q else -_ops.log(p)


@_keras.saving.register_keras_serializable(package="cxr")
class GeneralizedCrossEntropy(_keras.losses.Loss):
    """Generalized cross-entropy of one class per film, for labels of which some are wrong; see `_surprise`.

    Targets are (N, classes), one-hot; predictions (N, classes), adding up to 1.

    Args:
        label_smoothing: share of the target spread evenly.
        q: 0 would be the cross-entropy, 1 the mean absolute error.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        q: float = _ROBUST,
        name: str = "generalized_cross_entropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.label_smoothing, self.q = label_smoothing, q

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One loss a film, shape (N,)."""
        y_true = _ops.cast(y_true, y_pred.dtype)
        smooth = y_true * (1 - self.label_smoothing) + self.label_smoothing / y_true.shape[-1]
        return _ops.sum(smooth * _surprise(_ops.clip(y_pred, 1e-7, 1.0), self.q), axis=-1)

    def get_config(self) -> dict:
        """What the loss is made again from."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing, "q": self.q}


@_keras.saving.register_keras_serializable(package="cxr")
class KnownLabelsCrossEntropy(_keras.losses.Loss):
    """Binary cross-entropy of several labels per film, over the labels that are known.

    Targets are (N, K): 1 there, 0 not there, -1 unknown; predictions (N, K) in [0, 1].

    Args:
        weights: (K, 2) what a film counts where it has the label, and where not; None counts all alike.
        label_smoothing: how far targets are moved from 0 and 1 towards 0.5.
        gamma: above 0 it is the focal loss (Lin et al. 2017), which films already judged well hardly move.
        q: above 0 it is the generalized cross-entropy, for labels of which some are wrong.
    """

    def __init__(
        self,
        weights: list[list[float]] | None = None,
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        name: str = "known_labels_cross_entropy",
        q: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.weights, self.label_smoothing, self.gamma, self.q = weights, label_smoothing, gamma, q

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One loss a film, shape (N,): the sum over its known labels, divided by K."""
        y_true = _ops.cast(y_true, y_pred.dtype)
        known = _ops.cast(y_true >= 0, y_pred.dtype)
        present = _ops.maximum(y_true, 0)
        count = known
        if self.weights is not None:
            table = _ops.convert_to_tensor(self.weights, y_pred.dtype)
            count = known * (present * table[:, 0] + (1 - present) * table[:, 1])
        smooth = present * (1 - self.label_smoothing) + self.label_smoothing / 2
        p = _ops.clip(y_pred, 1e-7, 1 - 1e-7)
        entropy = smooth * _surprise(p, self.q) + (1 - smooth) * _surprise(1 - p, self.q)
        if self.gamma:
            entropy = entropy * (1 - (present * p + (1 - present) * (1 - p))) ** self.gamma
        return _ops.mean(count * entropy, axis=-1)

    def get_config(self) -> dict:
        """What the loss is made again from."""
        options = {"weights": self.weights, "label_smoothing": self.label_smoothing, "gamma": self.gamma, "q": self.q}
        return {**super().get_config(), **options}


@_keras.saving.register_keras_serializable(package="cxr")
class KnownLabelsAccuracy(_keras.metrics.Metric):
    """Share of the known labels (targets 0 or 1; -1 is unknown) that are on the right side of 0.5."""

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.right = self.add_variable(shape=(), initializer="zeros", name="right")
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch of (N, K) targets and probabilities."""
        del sample_weight  # labels weigh the same
        known = _ops.cast(_ops.greater_equal(y_true, 0), "float32")
        right = _ops.cast(_ops.equal(_ops.greater(y_true, 0.5), _ops.greater(y_pred, 0.5)), "float32")
        self.right.assign_add(_ops.sum(known * right))
        self.count.assign_add(_ops.sum(known))

    def result(self) -> Any:
        """The share so far, 0 before any label."""
        return self.right / _ops.maximum(self.count, 1.0)


def dice_of_films(y_true: Any, y_pred: Any) -> Any:
    """Dice (N,) of masks and probabilities (N, H, W, 1), both cut at 0.5; 1 where both are empty."""
    axes = (1, 2, 3)
    truth = _ops.cast(_ops.greater(y_true, 0.5), "float32")
    guess = _ops.cast(_ops.greater(y_pred, 0.5), "float32")
    common = _ops.sum(truth * guess, axes)
    total = _ops.sum(truth, axes) + _ops.sum(guess, axes)
    return _ops.where(total > 0, 2.0 * common / _ops.maximum(total, 1.0), 1.0)


@_keras.saving.register_keras_serializable(package="cxr")
class DiceScore(_keras.metrics.Metric):
    """Mean Dice over films of the masks thresholded at 0.5; a film empty in both counts as 1."""

    def __init__(self, name: str = "dice", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.total = self.add_variable(shape=(), initializer="zeros", name="total")
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch of (N, H, W, 1) masks and probabilities."""
        del sample_weight  # films weigh the same
        score = dice_of_films(y_true, y_pred)
        self.total.assign_add(_ops.sum(score))
        self.count.assign_add(_ops.cast(_ops.shape(score)[0], "float32"))

    def result(self) -> Any:
        """The mean so far, 0 before any film."""
        return self.total / _ops.maximum(self.count, 1.0)


UNKNOWN = 4  # added to the codes of a film whose heart nobody drew, see `lungs_and_heart`


def lungs_and_heart(codes: Any) -> tuple[Any, Any, Any]:
    """The two masks in a target, and whether the second is known.

    Args:
        codes: (N, H, W, 1), at each pixel 1 for lung plus 2 for heart; plus 4 in a film whose heart is unknown.
            (One plane, so that augmentation moves both masks alike.)

    Returns:
        Lungs and heart (N, H, W, 1) float32, 0 or 1, and (N,) float32, 1 where the film's heart is known.
    """
    codes = _ops.cast(codes, "float32")
    known = _ops.cast(_ops.max(codes, (1, 2, 3)) < UNKNOWN, "float32")
    return _ops.mod(codes, 2.0), _ops.mod(_ops.floor(codes / 2.0), 2.0), known


@_keras.saving.register_keras_serializable(package="cxr")
class LungsAndHeart(_keras.losses.Loss):
    """A segmentation loss on lungs, and on the heart of the films whose heart is known.

    Targets are codes (N, H, W, 1), see `lungs_and_heart`; predictions (N, H, W, 2), lungs first. The heart's part is a
    mean over the batch's films with a known heart, so that it counts the same however few they are.

    Args:
        loss: name of the loss of each organ, see `segmentation_loss`.
        heart_weight: what the heart's loss counts, beside the lungs' 1.
    """

    def __init__(
        self,
        loss: str = "dice_cross_entropy",
        heart_weight: float = 0.5,
        name: str = "lungs_and_heart",
        **kwargs: object,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.loss, self.heart_weight = loss, heart_weight
        self._organ = segmentation_loss(loss)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One loss a film, shape (N,)."""
        lungs, heart, known = lungs_and_heart(y_true)
        of_lungs, of_heart = (
            self._a_film(self._organ.call(truth, y_pred[..., place : place + 1]))
            for place, truth in enumerate((lungs, heart))
        )
        known = _ops.cast(known, of_heart.dtype)
        share = _ops.maximum(_ops.mean(known), 1e-6)
        return of_lungs + self.heart_weight * known * of_heart / share

    @staticmethod
    def _a_film(loss: Any) -> Any:
        """A loss as (N,): some give one per film, some one per pixel."""
        return loss if len(loss.shape) == 1 else _ops.mean(loss, tuple(range(1, len(loss.shape))))

    def get_config(self) -> dict:
        """What the loss is made again from."""
        return {**super().get_config(), "loss": self.loss, "heart_weight": self.heart_weight}


@_keras.saving.register_keras_serializable(package="cxr")
class OrganDice(DiceScore):
    """`DiceScore` of one organ, on targets and predictions of `LungsAndHeart`; films whose heart is unknown count not.

    Args:
        organ: 0 for the lungs, 1 for the heart.
    """

    def __init__(self, organ: int = 0, name: str = "dice", **kwargs: object) -> None:
        super().__init__(name=name, **kwargs)
        self.organ = organ

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: object = None) -> None:
        """Add a batch of codes (N, H, W, 1) and probabilities (N, H, W, 2)."""
        del sample_weight  # films weigh the same
        *masks, known = lungs_and_heart(y_true)
        score = dice_of_films(masks[self.organ], y_pred[..., self.organ : self.organ + 1])
        counted = known if self.organ else _ops.ones_like(known)
        self.total.assign_add(_ops.sum(score * counted))
        self.count.assign_add(_ops.sum(counted))

    def get_config(self) -> dict:
        """What the metric is made again from."""
        return {**super().get_config(), "organ": self.organ}


# By name, for one class per film and for several labels per film. A scalar alpha only scales the loss: 1 keeps it the
# cross-entropy's where gamma is 0.
_CLASSIFICATION: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "cross_entropy": (_keras.losses.CategoricalCrossentropy, KnownLabelsCrossEntropy),
    "focal": (
        lambda **options: _keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=2.0, **options),
        lambda **options: KnownLabelsCrossEntropy(gamma=2.0, **options),
    ),
    "generalized_cross_entropy": (
        GeneralizedCrossEntropy,
        lambda **options: KnownLabelsCrossEntropy(q=_ROBUST, **options),
    ),
}

_SEGMENTATION: dict[str, Callable[[], Any]] = {
    "dice_cross_entropy": DiceCrossEntropy,
    "dice": lambda: DiceCrossEntropy(entropy_weight=0.0, name="dice"),
    "cross_entropy": _keras.losses.BinaryCrossentropy,
    "focal": lambda: _keras.losses.BinaryFocalCrossentropy(gamma=2.0),
}


def classification_loss(
    name: str, multi_label: bool, label_smoothing: float = 0.0, weights: list[list[float]] | None = None
) -> Any:
    """The classifier's loss on probabilities (N, classes).

    Args:
        name: "cross_entropy"; "focal" (Lin et al. 2017, gamma 2), which films already judged well hardly move; or
            "generalized_cross_entropy" (Zhang and Sabuncu 2018, q 0.7), which films with a wrong label hardly move.
        multi_label: each class is a question of its own (`KnownLabelsCrossEntropy`), in place of one class per film.
        label_smoothing: share of the target spread evenly.
        weights: of the labels, where a film may have several; see there.

    Raises:
        ValueError: no loss of that name.
    """
    options = {"weights": weights} if multi_label else {}
    return _named(_CLASSIFICATION, name)[int(multi_label)](label_smoothing=label_smoothing, **options)


def segmentation_loss(name: str) -> Any:
    """The segmentation network's loss on probabilities (N, H, W, 1): dice_cross_entropy, dice, cross_entropy or focal.

    For a network that finds the heart too, see `LungsAndHeart`.

    Raises:
        ValueError: no loss of that name.
    """
    return _named(_SEGMENTATION, name)()


def _named(losses: dict[str, Any], name: str) -> Any:
    if name not in losses:
        raise ValueError(f"loss must be one of {', '.join(losses)}. Received: {name!r}")
    return losses[name]
