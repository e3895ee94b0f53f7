"""Networks of finite width, as Flax NNX modules."""

from sdntk.networks.finite_width import FiniteWidth
from sdntk.networks.mlp import MLP
from sdntk.networks.resnet import ResNet, resnet18, resnet50
from sdntk.networks.strided import StridedCNN
from sdntk.networks.vgg import VGG, small_cnn, vgg16

__all__ = [
    "MLP",
    "VGG",
    "FiniteWidth",
    "ResNet",
    "StridedCNN",
    "resnet18",
    "resnet50",
    "small_cnn",
    "vgg16",
]
