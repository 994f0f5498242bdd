# ruff: noqa: C408  (dict() is MMDetection's dialect)
# RTMDet-tiny (Lyu et al., 2022) on tiles, made for small lesions: EfficientNet-Lite0 with packaged ImageNet
# weights as the backbone, and strides 4/8/16 in place of 8/16/32, because a point of the grid must fall
# inside a box for the box to be learnt and most microaneurysms are smaller than 8 px.
_base_ = ["_base_/runtime.py"]

norm = dict(type="BN")
act = dict(type="SiLU", inplace=True)
strides = [4, 8, 16]
model = dict(
    type="RTMDet",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_size_divisor=16,
    ),
    backbone=dict(
        type="TimmBackbone",
        name="tf_efficientnet_lite0",
        out_indices=(1, 2, 3),
        frozen_level=1,
        norm_eval=True,
    ),
    neck=dict(
        type="CSPNeXtPAFPN",
        in_channels=[24, 40, 112],
        out_channels=64,
        num_csp_blocks=1,
        expand_ratio=0.5,
        norm_cfg=norm,
        act_cfg=act,
    ),
    bbox_head=dict(
        type="RTMDetSepBNHead",
        num_classes=4,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=strides),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        with_objectness=False,
        exp_on_reg=False,
        share_conv=True,
        pred_kernel_size=1,
        norm_cfg=norm,
        act_cfg=act,
    ),
    train_cfg=dict(
        assigner=dict(type="DynamicSoftLabelAssigner", topk=13),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.01,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=100,
    ),
)
