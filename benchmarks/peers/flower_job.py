"""FedGAN in Flower: FedAvg over the state of both networks, in Flower's simulation engine.

Flower's strategy loop and engine are unchanged. Start it with `python -c "import flower_job;
flower_job.run()"`: Ray's processes import the client by the name of its module.
"""

from __future__ import annotations

from functools import cache

import observe
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from plain_gan import JOB, Gan, train

client, server = ClientApp(), ServerApp()


@cache  # a process plays several devices
def gan_of_process() -> Gan:
    torch.set_num_threads(1)
    return Gan()


@client.train()
def train_device(message: Message, context: Context) -> Message:
    gan, arrays = gan_of_process(), message.content["arrays"]
    gan.load_state_dict(arrays.to_torch_state_dict())
    round = int(message.content["config"]["server-round"]) - 1
    images = train(gan, int(context.node_config["partition-id"]) + 1, round)
    trained = ArrayRecord(gan.state_dict())
    if round in (0, JOB["rounds"] - 1):
        observe.message(down=arrays.count_bytes(), up=trained.count_bytes())
    metrics = MetricRecord({"num-examples": images})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    gan = Gan()

    def evaluate(round: int, arrays: ArrayRecord) -> None:
        if round > 0:
            if JOB["export_every"] and round % JOB["export_every"] == 0:
                gan.load_state_dict(arrays.to_torch_state_dict())
            observe.round_end(gan)

    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=JOB["devices"])
    strategy.start(
        grid, ArrayRecord(gan.state_dict()), num_rounds=JOB["rounds"], evaluate_fn=evaluate
    )


def run() -> None:
    run_simulation(server, client, num_supernodes=JOB["devices"])
