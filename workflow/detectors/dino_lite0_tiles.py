# ruff: noqa: C408  (dict() is MMDetection's dialect)
# DINO (Zhang et al., ICLR 2023) on tiles: a set of boxes without anchors or suppression. EfficientNet-Lite0
# with packaged ImageNet weights, strides 4 to 32 in place of 8 to 64, three layers in place of six, half the
# channels, 300 queries. Its values in params.yaml: detector: {batch_size: 4, lr: 0.0002, epochs: 50 or more}.
_base_ = ["_base_/runtime.py"]

channels = 128
levels = dict(embed_dims=channels, num_levels=4, dropout=0.0)
feedforward = dict(embed_dims=channels, feedforward_channels=512, ffn_drop=0.0)
model = dict(
    type="DINO",
    num_queries=300,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="TimmBackbone",
        name="tf_efficientnet_lite0",
        out_indices=(1, 2, 3, 4),
        frozen_level=1,
        norm_eval=True,
    ),
    neck=dict(
        type="ChannelMapper",
        in_channels=[24, 40, 112, 320],
        kernel_size=1,
        out_channels=channels,
        act_cfg=None,
        norm_cfg=dict(type="GN", num_groups=32),
        num_outs=4,
    ),
    encoder=dict(num_layers=3, layer_cfg=dict(self_attn_cfg=levels, ffn_cfg=feedforward)),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=channels, num_heads=8, dropout=0.0),
            cross_attn_cfg=levels,
            ffn_cfg=feedforward,
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=channels // 2, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type="DINOHead",
        embed_dims=channels,
        num_classes=4,
        sync_cls_avg_factor=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100),
    ),
    train_cfg=dict(
        assigner=dict(
            type="HungarianAssigner",
            match_costs=[
                dict(type="FocalLossCost", weight=2.0),
                dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                dict(type="IoUCost", iou_mode="giou", weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=100),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
