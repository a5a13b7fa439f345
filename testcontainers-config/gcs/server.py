"""What stands for Google Cloud Storage in tests: its XML API, which is S3's but for some words, before moto's S3.

object_store speaks this API and nothing else. No emulator that a package registry has does: fake-gcs-server (1.56.1) answers a
put by "invalid uploadType" and knows no uploads in parts; what object_store's own CI runs is a branch of it that was never
released. So this is no second opinion on what Google does, as Azurite and moto are on the others. It is the documentation
(https://cloud.google.com/storage/docs/xml-api) as far as a client that gets, puts, lists and deletes can see a difference:

- Who asks shows a token that a service account's key has signed; signature, end and the account that it names are checked.
- A put that must not replace says x-goog-if-generation-match: 0.
- What is not there cannot be deleted.

Prints one line: the port, and the [storage.options] of one who may do all, of one who may only read, and of those who are not
let in. Ends when standard input does, so that it never outlives the test that started it.
"""

import base64
import io
import json
import logging
import os
import sys
import threading
import time
from urllib.parse import parse_qs, unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "blobs"
# Pages as short as this, so that who lists needs several without thousands of blobs; Google's have 1,000.
os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = "100"
# What moto takes the bucket's owner for; it checks no signature.
OWNER = "AWS4-HMAC-SHA256 Credential=owner/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"

keys = {}
one_at_a_time = threading.RLock()
store = s3_backends["123456789012"]["aws"]
moto = DomainDispatcherApplication(create_backend_app)


def account(name, may):
    """Makes a service account that may do so much; gives its key file, as Google's console does."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    mail, key_id = f"{name}@stillwell.iam.gserviceaccount.com", f"{name}s-key"
    keys[key_id] = (mail, key.public_key(), may)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {"type": "service_account", "client_email": mail, "private_key_id": key_id, "private_key": pem}


def unpadded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def asker(header):
    """Mail and rights of who signed a token; None if nobody did, or too long ago."""
    try:
        kind, token = header.split(" ")
        signed, _, signature = token.rpartition(".")
        head, claims = (json.loads(unpadded(part)) for part in signed.split("."))
        mail, public, may = keys[head["kid"]]
        public.verify(unpadded(signature), signed.encode(), padding.PKCS1v15(), SHA256())
        known = kind == "Bearer" and claims["iss"] == mail and claims["exp"] > time.time() and claims["scope"]
        return (mail, may) if known else None
    except (ValueError, KeyError, InvalidSignature):
        return None


def refusal(start, status, code, message, details=""):
    details = details and f"<Details>{details}</Details>"
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message>{details}</Error>"
    start(status, [("content-type", "application/xml; charset=UTF-8"), ("content-length", str(len(body)))])
    return [body.encode()]


def google(environ, start):
    method, query = environ["REQUEST_METHOD"], parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    bucket, _, name = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    # First all that is sent, outside of the lock; what breaks off in its middle was never asked.
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    if len(body) < length:
        raise ConnectionAbortedError
    environ["wsgi.input"] = io.BytesIO(body)
    known = asker(environ.get("HTTP_AUTHORIZATION", ""))
    if known is None:
        return refusal(start, "401 Unauthorized", "AuthenticationRequired", "Authentication required.")
    mail, may = known
    if method not in may:
        details = f"{mail} does not have storage.objects access to the Google Cloud Storage object."
        return refusal(start, "403 Forbidden", "AccessDenied", "Access denied.", details)
    environ["HTTP_AUTHORIZATION"] = OWNER
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    # moto looks whether a key is there, and later puts it; a store does both at once.
    with one_at_a_time:
        there = bucket in store.buckets
        if there and method == "DELETE" and "uploadId" not in query and name not in store.buckets[bucket].keys:
            return refusal(start, "404 Not Found", "NoSuchKey", "The specified key does not exist.")
        return moto(environ, start)


logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
store.create_bucket(BUCKET, "us-east-1")
server = make_server("127.0.0.1", 0, google, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
every = ["GET", "HEAD", "PUT", "POST", "DELETE"]
port = server.server_address[1]
writer, reader, other = account("writer", every), account("reader", every[:2]), account("other", [])
# Who says to be the writer, and has not the writer's key; whom nobody knows.
liar = dict(writer, private_key=other["private_key"])
nobody = dict(other, private_key_id="n0b0dys-key")
option = lambda key: {"google_service_account_key": json.dumps(key)}
said = {
    "port": port,
    "place": {"google_base_url": f"http://127.0.0.1:{port}", "allow_http": "true"},
    "writer": option(writer),
    "reader": option(reader),
    "strangers": [option(liar), option(nobody)],
    "secrets": [text for key in (writer, reader, other) for text in key["private_key"].split("\n")[1:-2]]
    + [nobody["private_key_id"], reader["client_email"], OWNER],
}
print(json.dumps(said), flush=True)
sys.stdin.read()
