"""Which models take the same time for every request of the same shapes.

A run that is known to be short may be made on the thread that serves all calls (`Batcher.at_once`).
What was measured for one request must then hold for the next: a model with a loop whose
number of turns is an input, or with an output whose size is, could be light a thousand times and then
hold everybody up. So operators are listed whose work follows from the shapes of their inputs;
a model with any other, also inside of a function or a branch, is never run there.

If this fails: one publisher's model delays the calls of all tenants, until it is timed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.inference.tensors import TensorSpec

_STEADY: Final = frozenset(
    b"Abs Add And ArgMax ArgMin ArrayFeatureExtractor AveragePool BatchNormalization Binarizer Cast Ceil Clip Concat "
    b"Constant Conv Div Dropout Elu Equal Erf Exp Flatten Floor Gather Gemm GlobalAveragePool GlobalMaxPool Greater "
    b"GreaterOrEqual HardSigmoid Identity Imputer LayerNormalization LeakyRelu Less LessOrEqual LinearClassifier "
    b"LinearRegressor Log LogSoftmax MatMul Max MaxPool Mean Min Mul Neg Normalizer Not Or PRelu Pow Reciprocal "
    b"ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape SVMClassifier SVMRegressor Scaler Selu Shape Sigmoid Sign "
    b"Softmax Softplus Sqrt Squeeze Sub Sum Tanh Transpose TreeEnsembleClassifier TreeEnsembleRegressor Unsqueeze "
    b"Where".split()
)


def is_steady(operators: Iterable[bytes], inputs: Iterable[TensorSpec]) -> bool:
    """Whether the work of a model of these operators follows from shapes alone. Texts have lengths of their own."""
    return all(spec.datatype.width is not None for spec in inputs) and _STEADY.issuperset(operators)
