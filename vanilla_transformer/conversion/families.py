"""Every family of checkpoints that is known, in the order in which they are tried."""

from __future__ import annotations

from .eole import EoleFamily
from .fairseq import FairseqFamily
from .fsmt import FSMTFamily
from .joeynmt import JoeyNMTFamily
from .marian import MarianFamily
from .marian_native import MarianNativeFamily
from .opennmt import OpenNMTFamily
from .source import Family
from .tensor2tensor import Tensor2TensorFamily
from .torch_transformer import AnnotatedTransformerFamily, TorchTransformerFamily

FAMILIES: tuple[Family, ...] = (
    MarianFamily(),
    MarianNativeFamily(),
    FSMTFamily(),
    FairseqFamily(),
    Tensor2TensorFamily(),
    OpenNMTFamily(),
    EoleFamily(),
    JoeyNMTFamily(),
    TorchTransformerFamily(),
    AnnotatedTransformerFamily(),
)
