# ruff: noqa: C408  (dict() is MMDetection's dialect)
# faster-rcnn_r50_fpn_tiles small enough for CPUs: EfficientNet-Lite0, whose ImageNet weights are packaged
# (detector.start: imagenet), half the channels, a quarter of the hidden units, fewer proposals.
_base_ = ["faster-rcnn_r50_fpn_tiles.py"]

channels = 128
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(name="tf_efficientnet_lite0"),
    neck=dict(in_channels=[24, 40, 112, 320], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels, fc_out_channels=256),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=1000, max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
