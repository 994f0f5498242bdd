"""The block ``pretrain``: a class for each method; ``workflow/rules/grading.smk``."""

from typing import Annotated, Literal

from pydantic import Field

from drgrade.params.block import Augment, Block, Seed
from drgrade.params.lesions import Source

KnnEvery = Annotated[int, Field(ge=1)] | None
CONTRASTIVE = Augment(
    scale=[0.8, 1.2], translate=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2
)
"""Random changes of a view, with the ranges of Huang et al., MICCAI 2021."""


class Contrastive(Block):
    """Keys of all contrastive methods: views of one sample are pulled together, others pushed away."""

    encoder: str = "tf_efficientnet_lite0"
    """Any timm backbone."""
    start: str = "imagenet"
    """random, imagenet, or a weights file."""
    head: Literal["mlp", "linear"] = "mlp"
    """Projection to 128 values: Linear-ReLU-Linear, or one Linear."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Visits to every photograph (1000 in the paper)."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Pairs a step, over all devices (768 in the paper)."""
    chunk: Annotated[int, Field(ge=2)] | None = None
    """Views in memory at a time, for batches that do not fit: the loss and its negatives stay those of the
    whole batch, BatchNorm sees a chunk, a step takes a forward pass more. Null: the whole batch at once."""
    optimiser: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd: Nesterov momentum 0.9, as published; lars: the same, each layer's step scaled by its norms."""
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate, cosine to zero."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps over which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On all parameters with sgd, as published; not on biases and norms with lars and adamw."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Of the loss."""
    weights_ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights over the steps, such as 0.999: what is kept is the average.
    Null: the weights of the last step."""
    compile: bool = False
    """Run the network through torch.compile: a wait at the start, other last digits. Needs a C++ compiler."""
    knn_every: KnnEvery = None
    """Epochs from one val_knn_qwk to the next, a k-NN on the encoder so far, to look at only; null: none."""
    seed: Seed = 1
    """Seed of everything random."""
    augment: Augment = CONTRASTIVE


class LesionContrastive(Contrastive):
    """Lesion-based contrastive pretraining (Huang et al., MICCAI 2021)."""

    method: Literal["lesion_contrastive"] = "lesion_contrastive"
    """The module of ``drgrade.pretrain``."""

    boxes: Source = "detector"
    """detector: lesions it found; masks: lesions drawn in masks; random: as many boxes as detector gives, of
    the same sizes, anywhere on the retina. The last two tell what the detector is worth."""
    boxes_per_image: Annotated[int, Field(ge=1)] = 1
    """Lesions of a photograph shown in an epoch (1 in the paper), or all it has if fewer."""
    window: Literal["inside", "published"] = "inside"
    """inside: windows stay in the crop; published: they may leave it on the right and below, into black."""
    order: Literal["fused", "published"] = "fused"
    """fused: all colours, then all moves, a pass each; published: one after the other, many times slower."""
    positives: Literal["pair", "lesion"] = "pair"
    """pair: the two views of a lesion (NT-Xent); lesion: all views of its kind in the batch (SupCon, Khosla
    et al., 2020), which answers that lesions of one kind push each other away."""


class SimCLR(Contrastive):
    """The same on whole photographs: SimCLR (Chen et al., ICML 2020), the papers' baseline."""

    method: Literal["simclr"] = "simclr"
    """The module of ``drgrade.pretrain``."""

    input_size: Annotated[int, Field(ge=32)] = 128
    """Side of a view in pixels (128 and 224 in the paper)."""


class LocalToGlobal(Block):
    """Local-to-global self-distillation: DINO (Caron et al., ICCV 2021) on fundus photographs."""

    method: Literal["local_to_global"] = "local_to_global"
    """The module of ``drgrade.pretrain``."""

    encoder: str = "vit_small_patch16_224"
    """A timm vision transformer: S or B, patches of 8 or 16."""
    start: str = "random"
    """random, imagenet, or a weights file."""
    preset: Literal["dino", "fundus", "lesion"] = "fundus"
    """dino: crops and colours as published; fundus: turned every way, no loss of colour; lesion: fundus, with
    one local crop centred on a detected lesion where there is one."""
    global_size: Annotated[int, Field(ge=32)] = 224
    """Side of the two global crops."""
    boxes: Source = "detector"
    """Of the preset lesion; as for lesion_contrastive."""
    local_size: Annotated[int, Field(ge=16)] = 96
    """Side of the local crops."""
    local_crops: Annotated[int, Field(ge=1)] = 6
    """Local crops of a photograph."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Passes over the photographs."""
    batch_size: Annotated[int, Field(ge=2)] = 20
    """Photographs in memory at a time, over all devices."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose mean gradient makes a step, which is then that of one batch so many times as big."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate of AdamW for a batch of 256; that used is lr * batch_size * accumulate / 256."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    """Epochs over which the learning rate rises from 0; then cosine to 1e-6."""
    weight_decay: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.04, 0.4]
    """At the first and the last step, cosine between; none on biases and norms."""
    teacher_momentum: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Of the teacher's moving average at the first step, cosine to 1."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.04
    """Of the teacher's softmax; the student's is 0.1."""
    out_dim: Annotated[int, Field(ge=16)] = 65536
    """Prototypes of the head (4096 to 8192 for small data)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth of the student."""
    clip: Annotated[float, Field(gt=0)] = 3.0
    """Largest norm of each parameter's gradient."""
    freeze_last: Annotated[int, Field(ge=0)] = 1
    """Epochs in which the head's last layer stays as it is."""
    compile: bool = False
    """Run encoders through torch.compile: a wait at the start, other last digits. Needs a C++ compiler."""
    knn_every: KnnEvery = None
    """Epochs from one val_knn_qwk to the next, a k-NN on the teacher so far, to look at only; null: none."""
    seed: Seed = 1
    """Seed of everything random."""


METHODS = ("lesion_contrastive", "simclr", "local_to_global")
Pretraining = Annotated[LesionContrastive | SimCLR | LocalToGlobal, Field(discriminator="method")]
"""What one encoder is pretrained by."""
