// Asks a server for every output with the types that openapi-typescript made of its page.
//
//     node main.js URL IMAGE FOLDER
//
// Writes each answer to FOLDER/OUTPUT, and prints a line each.

import { readFileSync, writeFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./fcn.js";

const [url, image, folder] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url });
const photo = new Blob([readFileSync(image)], { type: "image/png" });

type Output = NonNullable<
  NonNullable<paths["/segment"]["post"]["parameters"]["query"]>["output"]
>;
// Every output that there is: the compiler refuses a name too many, and one too few.
const outputs: Record<Output, true> = {
  label_map: true,
  overlay: true,
  color: true,
  json: true,
  rle: true,
  polygons: true,
  probabilities: true,
  confidence: true,
};

for (const output of Object.keys(outputs) as Output[]) {
  const { data, error, response } = await client.POST("/segment", {
    params: { query: { model: "tiny", version: "1", output } },
    headers: { "Content-Type": "image/png" },
    body: photo as never,
    bodySerializer: (body: unknown) => body as Blob,
    parseAs: "arrayBuffer",
  });
  if (error) throw new Error(error.detail);
  writeFileSync(`${folder}/${output}`, Buffer.from(data as ArrayBuffer));
  console.log(output, response.headers.get("content-type"));
}

const { error: wrong } = await client.POST("/segment", {
  params: { query: { model: "nope", classes: ["red", "2"], scale: 400 } },
  headers: { "Content-Type": "image/png" },
  body: photo as never,
  bodySerializer: (body: unknown) => body as Blob,
});
console.log("problem", wrong?.status, wrong?.type);

const { data: list } = await client.GET("/v1/models");
const models: components["schemas"]["Model"][] = list?.models ?? [];
console.log("models", models.map((model) => model.name).join(","));
const { data: model } = await client.GET("/v1/models/{model}", { params: { path: { model: "tiny" } } });
console.log("classes", model?.versions[0].contract?.classes.map((found) => found.name).join(","));
const { data: metadata } = await client.GET("/v2/models/{name}", { params: { path: { name: "tiny" } } });
console.log("inputs", metadata?.inputs.map((input) => input.name).join(","));
const { data: reply } = await client.POST("/v2/models/{name}/infer", {
  params: { path: { name: "tiny" } },
  body: {
    inputs: [
      {
        name: "image",
        shape: [1],
        datatype: "BYTES",
        data: [Buffer.from(readFileSync(image)).toString("base64")],
      },
    ],
  },
});
if (typeof reply !== "object") throw new Error("an answer in JSON was asked for");
console.log("infer", reply.outputs.map((output) => output.name).join(","));
