# ruff: noqa: C408  (dict() is MMDetection's dialect)
# The detector of Huang et al., MICCAI 2021 (specification 5): Faster R-CNN, ResNet-50, FPN, whole photographs
# of at most 1600 x 1200. Its values in params.yaml: lesion_boxes: {mode: parity, tile: null, min_side: 1},
# detector: {epochs: 100, batch_size: 2, lr: 0.005, start: <torchvision's ResNet-50 weights>}.
_base_ = ["_base_/runtime.py", "_base_/faster-rcnn_r50_fpn.py"]

max_epochs = 100
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(1600, 1200), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1600, 1200), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.005, momentum=0.9, weight_decay=0.0001),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=max_epochs, milestones=[50, 80], gamma=0.1),
]
