"""One call of the Kubernetes side of containerd: ImageService/PullImage, by gRPC over its socket.

There is no crictl in Debian. What one call takes is little: a preface, settings, one request with literal headers, and
an answer whose body nobody needs; what came of it is seen at Larder.
"""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def pull(path, image, seconds=60):
    """Asks for an image. Ends when it is answered, whatever the answer is."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(seconds)
    with connection:
        connection.connect(str(path))
        headers = {":method": "POST", ":scheme": "http", ":path": "/runtime.v1.ImageService/PullImage",
                   ":authority": "localhost", "content-type": "application/grpc", "te": "trailers"}
        block = b"".join(b"\x00" + text(name) + text(value) for name, value in headers.items())
        message = field(field(image.encode()))
        body = struct.pack(">BI", 0, len(message)) + message
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, block)
                           + frame(DATA, END_STREAM, 1, body))
        answers(connection)


def answers(connection):
    """Reads until the stream, or the connection, ends."""
    while True:
        head = read(connection, 9)
        if head is None:
            return
        length = int.from_bytes(head[:3], "big")
        kind, flags = head[3], head[4]
        payload = read(connection, length)
        if payload is None or kind == GOAWAY or (kind in (DATA, HEADERS) and flags & END_STREAM):
            return
        if kind in (SETTINGS, PING) and not flags & ACK:
            connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))


def read(connection, length):
    got = b""
    while len(got) < length:
        more = connection.recv(length - len(got))
        if not more:
            return None
        got += more
    return got


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def text(value):
    """A literal of HPACK without Huffman; shorter than 127 bytes."""
    return bytes((len(value),)) + value.encode()


def field(payload):
    """The first field of a message of protobuf: bytes, shorter than 16 KiB."""
    length = len(payload)
    size = bytes((length,)) if length < 128 else bytes((length & 127 | 128, length >> 7))
    return b"\x0a" + size + payload
