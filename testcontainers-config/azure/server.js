// An Azure blob store for tests: Azurite on a port of 127.0.0.1, in memory, with signatures and rights checked as Azure
// checks them. Its one argument is the folder that .ci/azure printed.
//
// Prints one line: the port, and the [storage.options] of one who may do all, of one who may only read, and of those who are not
// let in. Ends when standard input does, so that it never outlives the test that started it.
"use strict";

const { createHmac } = require("crypto");
const { request } = require("http");
const { createRequire } = require("module");

const installed = createRequire(`${process.argv[2]}/`);
const account = "stillwell";
const key = Buffer.from("the tests' own key, of no use anywhere else").toString("base64");
process.env.AZURITE_ACCOUNTS = `${account}:${key}`;

const azurite = (path) => installed(`azurite/dist/src/${path}`);
const BlobServer = azurite("blob/BlobServer").default;
const BlobConfiguration = azurite("blob/BlobConfiguration").default;
// Pages as short as this, so that who lists needs several without thousands of blobs; Azure's have 5,000.
azurite("blob/utils/constants").DEFAULT_LIST_BLOBS_MAX_RESULTS = 100;
// Which rights a delete among several needs under a signature: without it Azurite answers 500. Each of them is looked at anyway.
const rights = azurite("blob/authentication/OperationAccountSASPermission").default;
const operations = azurite("blob/generated/artifacts/operation").default;
rights.set(operations.Container_SubmitBatch, rights.get(operations.Service_SubmitBatch));
// Else it tells Microsoft what it is asked.
azurite("common/Telemetry").AzuriteTelemetryClient.init("", false, undefined);

const signed = (text) => createHmac("sha256", Buffer.from(key, "base64")).update(text, "utf8").digest("base64");

/** Makes a container. */
function container(port, name) {
  const headers = { "x-ms-date": new Date().toUTCString(), "x-ms-version": "2021-08-06", "content-length": "0" };
  const named = `x-ms-date:${headers["x-ms-date"]}\nx-ms-version:${headers["x-ms-version"]}\n`;
  const resource = `/${account}/${account}/${name}\nrestype:container`;
  headers.authorization = `SharedKey ${account}:${signed(`PUT${"\n".repeat(12)}${named}${resource}`)}`;
  const path = `/${account}/${name}?restype=container`;
  return new Promise((resolve, reject) => {
    const asked = request({ host: "127.0.0.1", port, path, method: "PUT", headers }, (answer) => {
      answer.resume();
      if (answer.statusCode === 201) resolve();
      else reject(new Error(`making ${name} was answered by ${answer.statusCode}`));
    });
    asked.on("error", reject);
    asked.end();
  });
}

/** An account's shared access signature: so much in blobs, for so many hours from now. */
function permission(permissions, hours) {
  const version = "2021-08-06";
  const end = `${new Date(Date.now() + hours * 3600e3).toISOString().slice(0, 19)}Z`;
  const text = [account, permissions, "b", "sco", "", end, "", "", version, "", ""].join("\n");
  const fields = { sv: version, ss: "b", srt: "sco", sp: permissions, se: end, sig: signed(text) };
  return new URLSearchParams(fields).toString();
}

async function main() {
  const server = new BlobServer(
    new BlobConfiguration("127.0.0.1", 0, undefined, "", "", [], false, undefined, false, undefined, false, true,
      "", "", "", undefined, true, true),
  );
  await server.start();
  const port = Number(new URL(server.getHttpServerAddress()).port);
  await container(port, "blobs");
  const named = { azure_storage_account_name: account };
  const byKey = (key) => ({ ...named, azure_storage_account_key: key });
  const bySignature = (signature) => ({ ...named, azure_storage_sas_key: signature });
  const wrongKey = Buffer.from("wr0ng key of the account").toString("base64");
  const reader = permission("rl", 24);
  const ended = permission("rl", -1);
  const forged = permission("rcwdl", 24).replace(/sig=..../, "sig=AAAA");
  console.log(
    JSON.stringify({
      port,
      place: { azure_storage_endpoint: `http://127.0.0.1:${port}/${account}`, allow_http: "true" },
      writer: byKey(key),
      signed: bySignature(permission("rcwdl", 24)),
      reader: bySignature(reader),
      strangers: [byKey(wrongKey), bySignature(forged), bySignature(ended)],
      secrets: [key, wrongKey, ...[reader, forged, ended].map((signature) => signature.split("sig=")[1])],
    }),
  );
  process.stdin.resume();
  process.stdin.on("end", () => process.exit(0));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
