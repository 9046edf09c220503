"""DynamoDB over a slow network: asks the endpoint behind it once, and says the same again after a while.

    python -m benchmarks.replay http://127.0.0.1:8000 0.05

Its port is the first line on stdout. It answers reads that it knows without the endpoint, so that as many are answered a
second as a client asks for; all else it passes on.
"""

import asyncio
import sys
import urllib.request

_READS = (b"DynamoDB_20120810.GetItem", b"DynamoDB_20120810.BatchGetItem")
_TOLD = ("content-type", "x-amz-crc32")


def asked(endpoint: str, headers: dict[str, str], body: bytes) -> bytes:
    """The answer of the endpoint, as it goes over the wire."""
    request = urllib.request.Request(endpoint, body, headers)  # noqa: S310 (loopback)
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        held = answer.read()
        told = [f"{name}: {answer.headers[name]}\r\n" for name in _TOLD if answer.headers[name]]
    return f"HTTP/1.1 200 OK\r\n{''.join(told)}content-length: {len(held)}\r\n\r\n".encode() + held


async def main(endpoint: str, seconds: float) -> None:
    known: dict[bytes, bytes] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
            except asyncio.IncompleteReadError:
                writer.close()
                return
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            target = headers.get("x-amz-target", "").encode()
            answer = known.get(target + body)
            if answer is None:
                answer = await asyncio.to_thread(asked, endpoint, headers, body)
                if target in _READS:
                    known[target + body] = answer
            await asyncio.sleep(seconds)
            writer.write(answer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
