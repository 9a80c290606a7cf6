"use strict";
// An app of the CDK: stdin has an array of { form, id, props }, in the order in which they are made.
// A prop { stack: ID } is that stack, { made: NAME } what is known only when it is deployed.
// Prints an object: id to { template, after: [ids] }, or to { error } if it was refused.

const { App, Fn } = require("aws-cdk-lib/core");
const { RoomcastDataStack, RoomcastStack } = require("../../deploy/cdk");

const FORMS = { data: RoomcastDataStack, fleet: RoomcastStack };
const app = new App({ analyticsReporting: false });
const made = {};
const refused = {};

function prop(value) {
  if (value && value.stack) return made[value.stack];
  if (value && value.made) return Fn.importValue(value.made);
  return value;
}

for (const { form, id, props } of JSON.parse(require("node:fs").readFileSync(0, "utf8"))) {
  const entries = Object.entries(props).map(([name, value]) => [name, prop(value)]);
  try {
    made[id] = new FORMS[form](app, id, Object.fromEntries(entries));
  } catch (error) {
    refused[id] = { error: error.message };
    app.node.tryRemoveChild(id);
  }
}

const assembly = app.synth();
const synthesized = Object.entries(made).map(([id, stack]) => [
  id,
  {
    template: assembly.getStackArtifact(stack.artifactId).template,
    after: stack.dependencies.map((other) => other.node.id),
  },
]);
console.log(JSON.stringify({ ...Object.fromEntries(synthesized), ...refused }));
