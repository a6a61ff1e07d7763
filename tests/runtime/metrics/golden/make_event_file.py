"""Makes events.tfevents: what event_file_test.cc must write, byte for byte.

Built from TensorBoard's own messages and record writer (PyPI tensorboard), so that the project's schema and record
format are compared with somebody else's. Run: python make_event_file.py (writes beside itself).
"""

import pathlib

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

WALL_TIME = 1700000000.25


def scalars(step, values):
    summary = summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values]
    )
    return event_pb2.Event(wall_time=WALL_TIME, step=step, summary=summary)


def text(tag, step, markdown):
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text"),
        data_class=summary_pb2.DATA_CLASS_TENSOR,
    )
    tensor = tensor_pb2.TensorProto(
        dtype="DT_STRING",
        string_val=[markdown.encode()],
        tensor_shape=tensor_shape_pb2.TensorShapeProto(
            dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]
        ),
    )
    value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
    return event_pb2.Event(
        wall_time=WALL_TIME, step=step, summary=summary_pb2.Summary(value=[value])
    )


def main():
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    events = [
        event_pb2.Event(wall_time=WALL_TIME, file_version="brain.Event:2"),
        event_pb2.Event(wall_time=WALL_TIME, step=11, session_log=start),
        text("config/text_summary", 10, "    run {\n      seed: 1\n    }\n"),
        scalars(11, [("loss", 2.5), ("grad_norm", float("inf"))]),
        scalars(12, [("loss", 0.1), ("learning_rate", 6e-4), ("skipped_steps", 0)]),
    ]
    path = pathlib.Path(__file__).with_name("events.tfevents")
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
