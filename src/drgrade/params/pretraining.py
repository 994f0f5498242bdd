"""The block ``pretrain``, with a class for each method: ``workflow/rules/grading.smk``."""

from typing import Annotated, Literal

from pydantic import Field

from drgrade.params.block import Augment, Block, Seed
from drgrade.params.lesions import Source

KnnEvery = Annotated[int, Field(ge=1)] | None
CONTRASTIVE = Augment(
    scale=[0.8, 1.2], translate=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2
)
"""Augmentation of views, with the ranges of Huang et al., MICCAI 2021."""


class Contrastive(Block):
    """Keys of all contrastive methods, which attract views of one sample and repel those of others."""

    encoder: str = "tf_efficientnet_lite0"
    """Any timm backbone."""
    start: str = "imagenet"
    """random, imagenet, or a weights file."""
    head: Literal["mlp", "linear"] = "mlp"
    """Projection head to 128 dimensions: mlp: Linear-ReLU-Linear; linear: one linear layer."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the photographs (1000 in the paper)."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Pairs of views per step, over all devices (768 in the paper)."""
    chunk: Annotated[int, Field(ge=2)] | None = None
    """Views per forward pass, for batches that exceed memory: loss and negatives are those of the whole
    batch, BatchNorm statistics those of a chunk; costs one more forward pass. Null: whole batch at once."""
    optimiser: Literal["sgd", "lars", "adamw"] = "sgd"
    """sgd: Nesterov momentum 0.9, as published; lars: the same with layer-wise adaptive rates; adamw."""
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate, with cosine decay to zero."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay: of all parameters with sgd, as published; not of biases and norms with lars and adamw."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the contrastive loss."""
    weights_ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; the average is kept. Null: no
    average, the weights of the last step are kept."""
    compile: bool = False
    """Use torch.compile: slow start, results differ in the last digits. Needs a C++ compiler."""
    knn_every: KnnEvery = None
    """Epochs between values of val_knn_qwk, QWK of a k-NN on the encoder, for monitoring only; null: none."""
    seed: Seed = 1
    """Seed of all random numbers."""
    augment: Augment = CONTRASTIVE


class LesionContrastive(Contrastive):
    """Lesion-based contrastive pretraining (Huang et al., MICCAI 2021)."""

    method: Literal["lesion_contrastive"] = "lesion_contrastive"
    """The module of ``drgrade.pretrain``."""

    boxes: Source = "detector"
    """detector: detected lesions; masks: annotated lesions; random: as many boxes as with detector, of the
    same sizes, anywhere on the retina. The last two are controls for the detector's contribution."""
    boxes_per_image: Annotated[int, Field(ge=1)] = 1
    """Lesions of a photograph used per epoch (1 in the paper); all if there are fewer."""
    window: Literal["inside", "published"] = "inside"
    """inside: windows stay in the crop; published: they may extend into black on the right and below."""
    order: Literal["fused", "published"] = "fused"
    """Augmentation order. fused: all colour changes, then all geometric ones, one pass each; published: one
    by one, many times slower."""
    positives: Literal["pair", "lesion"] = "pair"
    """pair: the two views of a lesion (NT-Xent); lesion: all views of its kind in the batch (SupCon, Khosla
    et al., 2020), so that lesions of one kind are not negatives of each other."""


class SimCLR(Contrastive):
    """SimCLR on whole photographs (Chen et al., ICML 2020), the papers' baseline."""

    method: Literal["simclr"] = "simclr"
    """The module of ``drgrade.pretrain``."""

    input_size: Annotated[int, Field(ge=32)] = 128
    """Side of a view in pixels (128 and 224 in the paper)."""


class LocalToGlobal(Block):
    """Local-to-global self-distillation: DINO (Caron et al., ICCV 2021) on fundus photographs."""

    method: Literal["local_to_global"] = "local_to_global"
    """The module of ``drgrade.pretrain``."""

    encoder: str = "vit_small_patch16_224"
    """A timm vision transformer: ViT-S or ViT-B with patches of 8 or 16 pixels."""
    start: str = "random"
    """random, imagenet, or a weights file."""
    preset: Literal["dino", "fundus", "lesion"] = "fundus"
    """Augmentation. dino: crops and colours as published; fundus: any rotation, no greyscale; lesion: fundus,
    with one local crop centred on a lesion if there is one."""
    global_size: Annotated[int, Field(ge=32)] = 224
    """Side of the two global crops in pixels."""
    boxes: Source = "detector"
    """Source of the boxes for the preset lesion; as for lesion_contrastive."""
    local_size: Annotated[int, Field(ge=16)] = 96
    """Side of the local crops in pixels."""
    local_crops: Annotated[int, Field(ge=1)] = 6
    """Number of local crops per photograph."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Passes over the photographs."""
    batch_size: Annotated[int, Field(ge=2)] = 20
    """Photographs per forward pass, over all devices."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches per optimiser step (gradient accumulation), equivalent to one batch that many times larger."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate of AdamW for a batch of 256; the rate used is lr * batch_size * accumulate / 256."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    """Epochs in which the learning rate rises from 0; then cosine decay to 1e-6."""
    weight_decay: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.04, 0.4]
    """Weight decay at the first and last step, cosine schedule between; none on biases and norms."""
    teacher_momentum: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Momentum of the teacher's moving average at the first step, cosine schedule to 1."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.04
    """Temperature of the teacher's softmax; the student's is 0.1."""
    out_dim: Annotated[int, Field(ge=16)] = 65536
    """Output dimension (prototypes) of the head; 4096 to 8192 for small datasets."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth rate of the student."""
    clip: Annotated[float, Field(gt=0)] = 3.0
    """Gradient clipping: maximum norm of each parameter's gradient."""
    freeze_last: Annotated[int, Field(ge=0)] = 1
    """First epochs in which the head's last layer is frozen."""
    compile: bool = False
    """Use torch.compile for encoders: slow start, results differ in the last digits. Needs a C++ compiler."""
    knn_every: KnnEvery = None
    """Epochs between values of val_knn_qwk, QWK of a k-NN on the teacher, for monitoring only; null: none."""
    seed: Seed = 1
    """Seed of all random numbers."""


METHODS = ("lesion_contrastive", "simclr", "local_to_global")
Pretraining = Annotated[LesionContrastive | SimCLR | LocalToGlobal, Field(discriminator="method")]
"""The params of one pretraining, by ``method``."""
