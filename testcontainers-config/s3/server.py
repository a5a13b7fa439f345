"""An S3 server for tests: moto on a port of 127.0.0.1, with signatures and rights checked as Amazon checks them.

Prints one line: the port, the [storage.options] of one who may do all, of one who may only read, and of those who are not
let in, and what a machine would be given that has the role of the first or of the second. Ends when standard input does, so that it never outlives the test that started it.
"""

import json
import os
import sys

# Until this many calls are over nobody has to sign: the users are made by such calls.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "1000"
# Pages as short as this, so that who lists needs several without thousands of blobs; Amazon's have 1,000.
os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = "100"

import functools
import logging
import threading
from urllib.request import Request, urlopen

import boto3
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

one_at_a_time = threading.RLock()


def at_once(put):
    """Asks whether a key is there, and stores it, without another put in between, as Amazon does and moto does not."""

    @functools.wraps(put)
    def alone(*arguments, **named):
        with one_at_a_time:
            return put(*arguments, **named)

    return alone


S3Response.put_object = at_once(S3Response.put_object)

logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
anybody = {
    "endpoint_url": f"http://127.0.0.1:{port}",
    "region_name": "us-east-1",
    "aws_access_key_id": "anybody",
    "aws_secret_access_key": "anything",
}
boto3.client("s3", **anybody).create_bucket(Bucket="blobs")
iam = boto3.client("iam", **anybody)


def user(name, actions):
    """Makes a user who may do so much in S3; gives the keys as options."""
    iam.create_user(UserName=name)
    statement = {"Effect": "Allow", "Action": actions, "Resource": ["*"]}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName="s3", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


def role(name, actions):
    """Makes a role that may do so much in S3; gives a session's credentials, as a metadata server answers with them."""
    anyone = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [anyone]})
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    statement = {"Effect": "Allow", "Action": actions, "Resource": ["*"]}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_role_policy(RoleName=name, PolicyName="s3", PolicyDocument=document)
    session = boto3.client("sts", **anybody).assume_role(RoleArn=arn, RoleSessionName=name)["Credentials"]
    keys = {"AccessKeyId": session["AccessKeyId"], "SecretAccessKey": session["SecretAccessKey"]}
    return {"Code": "Success", "Type": "AWS-HMAC", "Token": session["SessionToken"], **keys}


endpoint = anybody["endpoint_url"]
writer, reader = user("writer", ["s3:*"]), user("reader", ["s3:Get*", "s3:List*"])
roles = {"writer": role("writes", ["s3:*"]), "reader": role("reads", ["s3:Get*", "s3:List*"])}
liar = dict(writer, aws_secret_access_key="wr0ng-s3cret")
nobody = dict(liar, aws_access_key_id="AKIANOBODY")
said = {
    "port": port,
    "place": {"aws_endpoint_url": endpoint, "aws_allow_http": "true", "aws_region": anybody["region_name"]},
    "writer": writer,
    "reader": reader,
    "strangers": [liar, nobody],
    "roles": roles,
    "secrets": [
        *(value for keys in (writer, liar, nobody) for value in keys.values()),
        *(session[part] for session in roles.values() for part in ("AccessKeyId", "SecretAccessKey", "Token")),
    ],
}
# From here on everybody signs.
reset = Request(f"http://127.0.0.1:{port}/moto-api/reset-auth", data=b"0", headers={"content-type": "text/plain"})
urlopen(reset).read()
print(json.dumps(said), flush=True)
sys.stdin.read()
server.stop()
