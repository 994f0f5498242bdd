"""Trained models for use elsewhere: a portable copy, ONNX graphs, an encoder for timm, a model for MLflow."""
