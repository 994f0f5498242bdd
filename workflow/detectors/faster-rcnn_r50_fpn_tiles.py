# ruff: noqa: C408  (dict() is MMDetection's dialect)
# The paper's Faster R-CNN on tiles at native or half resolution, for lesions of 8 to 64 px: anchors of 8, 16,
# 32 and 64 px in place of 32 to 512, and tiles with rare lesions drawn more often. Its values in params.yaml:
# lesion_boxes: {tile: 512, scale: 0.5 or 1.0},
# detector: {batch_size: 8, lr: 0.0002, start: <torchvision's ResNet-50 weights>}.
_base_ = ["_base_/runtime.py", "_base_/faster-rcnn_r50_fpn.py"]

model = dict(
    neck=dict(num_outs=4),
    rpn_head=dict(anchor_generator=dict(scales=[2], strides=[4, 8, 16, 32])),
    roi_head=dict(
        # Sides under 32 px are read from stride 4, under 64 px from stride 8, and so on.
        bbox_roi_extractor=dict(finest_scale=16),
    ),
)
train_dataloader = dict(sampler=dict(_delete_=True, type="RareLesionSampler", threshold=0.5))
