"""The second version of the wire, written a second time: from docs/PROTOCOL.md and the Noise specification (revision 34), with
Debian's `cryptography` and the standard library. It shares no code with ours, so what both take for granted is what is
written down.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SUBPROTOCOL = "io-guardian.v2"
HELLO_HEADER, WELCOME_HEADER = "io-guardian-hello", "io-guardian-welcome"
PROTOCOL = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s"
LAST, MORE = b"\x00", b"\x01"
PADDING = 128


class Broken(Exception):
    """What the other side said cannot be opened."""


def to_header(message: bytes) -> str:
    """A message of the handshake, as its header has it."""
    return base64.urlsafe_b64encode(message).decode().rstrip("=")


def from_header(value: bytes) -> bytes:
    return base64.urlsafe_b64decode(value + b"=" * (-len(value) % 4))


def _hash(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def _hkdf(chaining: bytes, material: bytes, count: int) -> list[bytes]:
    """Section 4.3."""
    secret = hmac.digest(chaining, material, hashlib.blake2s)
    out: list[bytes] = []
    for n in range(1, count + 1):
        out.append(hmac.digest(secret, (out[-1] if out else b"") + bytes([n]), hashlib.blake2s))
    return out


class _Cipher:
    """Section 5.1: a key and its counter."""

    def __init__(self, key: bytes) -> None:
        self._key = ChaCha20Poly1305(key)
        self.nonce = 0

    def _next(self) -> bytes:
        self.nonce += 1
        return struct.pack("<IQ", 0, self.nonce - 1)

    def encrypt(self, plain: bytes, beside: bytes = b"") -> bytes:
        return self._key.encrypt(self._next(), plain, beside)

    def decrypt(self, sealed: bytes, beside: bytes = b"") -> bytes:
        try:
            return self._key.decrypt(self._next(), sealed, beside)
        except InvalidTag as error:
            raise Broken("it was not sealed with this key, or altered") from error


class Initiator:
    """One who connects: `hello` is what it says first; `finish` takes the answer, and gives the channel."""

    def __init__(self, key: str) -> None:
        psk = _hash(b"io-guardian.v2 psk\0" + key.encode())
        # Names longer than a hash are hashed (section 5.2).
        self._digest = self._chaining = PROTOCOL.ljust(32, b"\0") if len(PROTOCOL) <= 32 else _hash(PROTOCOL)
        self._mix_hash(SUBPROTOCOL.encode())
        self._chaining, mixed, cipher = _hkdf(self._chaining, psk, 3)
        self._mix_hash(mixed)
        self._cipher = _Cipher(cipher)
        self._ephemeral = X25519PrivateKey.generate()
        public = self._ephemeral.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._mix_public(public)
        self.hello = public + self._seal(b"")

    def _mix_hash(self, data: bytes) -> None:
        self._digest = _hash(self._digest + data)

    def _mix_key(self, material: bytes) -> None:
        self._chaining, cipher = _hkdf(self._chaining, material, 2)
        self._cipher = _Cipher(cipher)

    def _mix_public(self, public: bytes) -> None:
        # With a pre-shared key, ephemeral keys go into the key as well (section 9.2).
        self._mix_hash(public)
        self._mix_key(public)

    def _seal(self, plain: bytes) -> bytes:
        sealed = self._cipher.encrypt(plain, self._digest)
        self._mix_hash(sealed)
        return sealed

    def finish(self, answer: bytes) -> Channel:
        public, sealed = answer[:32], answer[32:]
        self._mix_public(public)
        self._mix_key(self._ephemeral.exchange(X25519PublicKey.from_public_bytes(public)))
        if self._cipher.decrypt(sealed, self._digest):
            raise Broken("the answer has a payload")
        send, receive = _hkdf(self._chaining, b"", 2)
        return Channel(_Cipher(send), _Cipher(receive))


class Channel:
    def __init__(self, send: _Cipher, receive: _Cipher) -> None:
        self._send, self._receive = send, receive

    def seal_plain(self, plain: bytes) -> bytes:
        """A frame with just these bytes in it."""
        return self._send.encrypt(plain)

    def seal(self, text: str) -> bytes:
        """A short message, which fits in one frame."""
        plain = LAST + text.encode()
        return self.seal_plain(plain.ljust(-(-len(plain) // PADDING) * PADDING, b" "))

    def open(self, frame: bytes) -> str:
        plain = self._receive.decrypt(frame)
        if plain[:1] != LAST:
            raise Broken("a message in parts, which a short answer is not")
        return plain[1:].decode().rstrip(" ")
