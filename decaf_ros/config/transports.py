"""Transports of image topics (image_transport) that are subscribed to, and how to decode the others.

A transport has a topic of its own beside the topic of the raw images: `/camera/image_raw/theora`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from decaf_ros.types.checks import quoted

# The ending of each transport's topic.
IMAGE_TRANSPORTS = {"raw": "", "compressed": "/compressed"}
DEPTH_TRANSPORTS = {"raw": "", "compressed": "/compressedDepth"}
# Transports whose plugins must decode them, and the types of their messages; zstd has that of compressed images.
_TYPES = {
    "theora": "theora_image_transport/msg/Packet",
    "ffmpeg": "ffmpeg_image_transport_msgs/msg/FFMPEGPacket",
    "foxglove": "foxglove_msgs/msg/CompressedVideo",
    "zstd": "sensor_msgs/msg/CompressedImage",
}
PACKET_TYPES = {kind: name for name, kind in _TYPES.items() if name != "zstd"}
_KNOWN = (*_TYPES, "compressed", "compressedDepth")
_TOPIC = "/camera/image_raw"
_TRANSPORT_NAME = re.compile(r"[A-Za-z]\w{0,39}", re.ASCII)


def republish_command(transport: str, topic: str = _TOPIC) -> str:
    """The command that decodes a transport of the raw `topic` to TOPIC/decoded.

    It has the arguments of Humble and the parameters of later distributions; each ignores the others.
    """
    return (
        f"ros2 run image_transport republish {transport} raw --ros-args -p in_transport:={transport} "
        f"-p out_transport:=raw -r in:={topic} -r in/{transport}:={topic}/{transport} -r out:={topic}/decoded"
    )


def check_transport(name: str, transport: object, topic: str = _TOPIC) -> None:
    """Raises ValueError for a transport that is not subscribed to, with the command that decodes it. name: of the
    option."""
    if isinstance(transport, str) and transport not in (*IMAGE_TRANSPORTS, "compressedDepth"):
        text = f"{name}: expected one of {', '.join(IMAGE_TRANSPORTS)}, got {quoted(transport)}"
        # No other text may stand in a command that somebody copies to a shell.
        if _TRANSPORT_NAME.fullmatch(transport):
            text += (
                f"; let image_transport decode it: {republish_command(transport, topic)}; then subscribe to "
                f"{topic}/decoded as raw"
            )
        raise ValueError(text)


def transport_of(topic: str, msgtype: str = "") -> str:
    """The transport of a topic that must be decoded, by its type and name; empty for others. msgtype: empty if it is
    not known."""
    last = topic.rpartition("/")[2]
    if msgtype in PACKET_TYPES:
        return PACKET_TYPES[msgtype]
    return last if last in _TYPES and msgtype in ("", _TYPES[last]) else ""


def decoding(topic: str, transport: str) -> str:
    """How to decode the topic of a transport, as the end of a sentence."""
    base = topic.removesuffix(f"/{transport}")
    return (
        f"let image_transport decode it: {republish_command(transport, base)}; then subscribe to {base}/decoded as raw"
    )


def check_topic(option: str, topic: str, transport: str, suffixes: Mapping[str, str]) -> None:
    """Raises ValueError for a topic that its name says to be of another transport.

    Args:
        option: the option that says the transport, for the error.
        topic: with the end of that transport.
        transport: the value of the option.
        suffixes: IMAGE_TRANSPORTS or DEPTH_TRANSPORTS.
    """
    base = topic.removesuffix(suffixes[transport])
    if other := transport_of(topic) or transport_of(base):
        where = base if transport_of(base) else topic
        raise ValueError(f"{where}: expected images as {transport} ({option}), got {other}; {decoding(where, other)}")
    last = base.rpartition("/")[2]
    if last in _KNOWN:
        camera = base.removesuffix(f"/{last}")
        if f"/{last}" in suffixes.values():
            mend = f"name {camera} and set {option} to compressed"
        else:
            mend = f"name {camera}{suffixes[transport]}"
        raise ValueError(f"{topic}: expected images as {transport} ({option}), got {last}; {mend}")
