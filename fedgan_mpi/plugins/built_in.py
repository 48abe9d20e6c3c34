"""The built-in names of each kind of plug-in, and the import string of each."""

from __future__ import annotations

BUILT_IN: dict[str, dict[str, str]] = {
    "algorithms": {
        "ren": "fedgan_mpi.algorithms.ren:Ren",
        "fedgan": "fedgan_mpi.algorithms.fedgan:FedGAN",
        "mdgan": "fedgan_mpi.algorithms.mdgan:MDGAN",
        "uagan": "fedgan_mpi.algorithms.uagan:UAGAN",
        "ensemble": "fedgan_mpi.algorithms.ensemble:Ensemble",
        "dp_fedavg_gan": "fedgan_mpi.algorithms.dp_fedavg_gan:DPFedAvgGAN",
        "fegan": "fedgan_mpi.algorithms.fegan:FeGAN",
        "fess_gda": "fedgan_mpi.algorithms.fess_gda:FessGDA",
        "centralized": "fedgan_mpi.algorithms.centralized:Centralized",
    },
    "networks": {
        "dcgan": "fedgan_mpi.nn.dcgan:build",
        "sngan": "fedgan_mpi.nn.sngan:build",
        "resnet": "fedgan_mpi.nn.resnet:build",
    },
    "losses": {
        "nonsaturating": "fedgan_mpi.nn.losses:nonsaturating",
        "saturating": "fedgan_mpi.nn.losses:saturating",
        "lsgan": "fedgan_mpi.nn.losses:lsgan",
        "hinge": "fedgan_mpi.nn.losses:hinge",
        "wgan-gp": "fedgan_mpi.nn.losses:wgan_gp",
    },
    "optimizers": {
        "adam": "fedgan_mpi.nn.optimizers:Adam",
        "sgd": "fedgan_mpi.nn.optimizers:SGD",
    },
    "augmentations": {
        "flip": "fedgan_mpi.nn.augment:Flip",
        "color": "fedgan_mpi.nn.augment:Color",
        "translation": "fedgan_mpi.nn.augment:Translation",
        "cutout": "fedgan_mpi.nn.augment:Cutout",
    },
    "policies": {
        "all": "fedgan_mpi.federation.policies:All",
        "random": "fedgan_mpi.federation.policies:Random",
        "round_robin": "fedgan_mpi.federation.policies:RoundRobin",
        "balanced": "fedgan_mpi.federation.policies:Balanced",
        "best_channel": "fedgan_mpi.federation.policies:BestChannel",
        "proportional_fair": "fedgan_mpi.federation.policies:ProportionalFair",
        "importance": "fedgan_mpi.federation.policies:Importance",
    },
    "rules": {
        "mean": "fedgan_mpi.algorithms.aggregation.rules:Mean",
        "median": "fedgan_mpi.algorithms.aggregation.rules:Median",
        "trimmed_mean": "fedgan_mpi.algorithms.aggregation.rules:TrimmedMean",
        "krum": "fedgan_mpi.algorithms.aggregation.rules:Krum",
        "multi_krum": "fedgan_mpi.algorithms.aggregation.rules:MultiKrum",
        "geometric_median": "fedgan_mpi.algorithms.aggregation.rules:GeometricMedian",
        "norm_bound": "fedgan_mpi.algorithms.aggregation.rules:NormBound",
    },
    "server_optimizers": {
        "sgd": "fedgan_mpi.algorithms.aggregation.server_optimizer:SGD",
        "adam": "fedgan_mpi.algorithms.aggregation.server_optimizer:Adam",
        "yogi": "fedgan_mpi.algorithms.aggregation.server_optimizer:Yogi",
        "adagrad": "fedgan_mpi.algorithms.aggregation.server_optimizer:Adagrad",
    },
    "compressors": {
        "none": "fedgan_mpi.algorithms.aggregation.compressors:Uncompressed",
        "top_k": "fedgan_mpi.algorithms.aggregation.compressors:TopK",
        "qsgd": "fedgan_mpi.algorithms.aggregation.compressors:QSGD",
    },
    "detectors": {
        "none": "fedgan_mpi.algorithms.aggregation.detectors:NoDetector",
        "loss_outliers": "fedgan_mpi.algorithms.aggregation.detectors:LossOutliers",
    },
    "extractors": {
        "shards": "fedgan_mpi.evaluation.features:read_extractor",
        "imagenet": "fedgan_mpi.evaluation.imagenet:read_imagenet",
    },
    "metrics": {
        "frechet": "fedgan_mpi.evaluation.metrics:Frechet",
        "classes": "fedgan_mpi.evaluation.metrics:Classes",
        "kid": "fedgan_mpi.evaluation.metrics:KID",
        "kid_federated": "fedgan_mpi.evaluation.metrics:FederatedKID",
        "per_class": "fedgan_mpi.evaluation.metrics:PerClass",
        "prdc": "fedgan_mpi.evaluation.metrics:PRDC",
    },
    "trackers": {
        "tensorboard": "fedgan_mpi.trackers.tensorboard:TensorBoard",
        "wandb": "fedgan_mpi.trackers.wandb:WandB",
        "mlflow": "fedgan_mpi.trackers.mlflow:MLflow",
    },
    "sources": {
        "mnist": "data_prep.sources.mnist:Mnist",
        "fashion_mnist": "data_prep.sources.mnist:FashionMnist",
        "cifar10": "data_prep.sources.cifar:Cifar10",
        "cifar100": "data_prep.sources.cifar:Cifar100",
        "celeba": "data_prep.sources.celeba:CelebA",
        "rsna": "data_prep.sources.rsna:Rsna",
        "imagefolder": "data_prep.sources.folder:ImageFolder",
        "npz": "data_prep.sources.npz:Npz",
        "digits": "data_prep.sources.embedded:Digits",
    },
    "partitions": {
        "iid": "data_prep.partitions.iid:Iid",
        "dirichlet": "data_prep.partitions.dirichlet:Dirichlet",
        "classes": "data_prep.partitions.classes:Classes",
        "shards": "data_prep.partitions.classes:Shards",
        "quantity": "data_prep.partitions.dirichlet:Quantity",
        "attribute": "data_prep.partitions.attribute:Attribute",
        "by_file": "data_prep.partitions.by_file:ByFile.read",
    },
}
"""Group -> name -> import string."""
KEYS = {
    "algorithm.name": "algorithms",
    "model.architecture": "networks",
    "training.loss": "losses",
    "training.optimizer": "optimizers",
    "training.augment": "augmentations",
    "participation.policy": "policies",
    "aggregation.rule": "rules",
    "aggregation.server_optimizer": "server_optimizers",
    "aggregation.compression": "compressors",
    "aggregation.detector": "detectors",
    "evaluation.extractor": "extractors",
    "evaluation.metrics": "metrics",
    "record.trackers": "trackers",
}
"""Configuration key that names code -> group."""
FILES = {"evaluation.extractor": (".pt", ".pt2", ".onnx")}
"""Configuration key -> endings of files that it may name."""
SOURCE_KEY, PARTITION_KEY = "DATASET", "--partition"
DATA_PREP_KEYS = {SOURCE_KEY: "sources", PARTITION_KEY: "partitions"}
"""Argument of data_prep that names code -> group."""
GROUPS = {**KEYS, **DATA_PREP_KEYS}
