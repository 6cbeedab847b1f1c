// Run the classifier in a directory that `export_onnx` wrote with transformers.js, which tokenizes by itself, and print
// {"ids": …, "logits": …} as JSON: `TRANSFORMERS_JS=folder node tools/client.mjs directory '["a text", …]'`.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const installed = createRequire(resolve(process.env.TRANSFORMERS_JS, "here.js")).resolve("@huggingface/transformers");
const { AutoModel, AutoModelForSequenceClassification, AutoTokenizer, env } = await import(pathToFileURL(installed));
const [directory, texts] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(directory);

const name = basename(directory);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const inputs = await tokenizer(JSON.parse(texts), { padding: true, truncation: true });
const options = { dtype: "fp32", ...(existsSync(resolve(directory, "onnx")) ? {} : { subfolder: "" }) };
const classifies = process.argv[4] !== "features";
const model = await (classifies ? AutoModelForSequenceClassification : AutoModel).from_pretrained(name, options);
const outputs = await model(inputs);
const found = Object.entries(outputs).filter(([key]) => ["logits", "last_hidden_state"].includes(key));
const told = { ids: inputs.input_ids.tolist().map((row) => row.map(Number)) };
for (const [key, value] of found) told[key] = value.tolist();
console.log(JSON.stringify(told));
