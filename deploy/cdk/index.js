"use strict";
// The stacks of deploy/data.yaml and deploy/template.yaml for apps of the AWS CDK. The templates
// are included as they are; all that is known of them here is in templates.json.

const fs = require("node:fs");
const path = require("node:path");
const { Stack, Token, Validations } = require("aws-cdk-lib/core");
const { CfnInclude } = require("aws-cdk-lib/cloudformation-include");
const TEMPLATES = require("./templates.json");

// In the repository they stand beside this folder, in a package of it (npm pack) in it.
const BESIDE = path.join(__dirname, "..");
const PLACE = fs.existsSync(path.join(BESIDE, "template.yaml")) ? BESIDE : __dirname;

// What the CDK's own rules say of templates whose parameters choose between parts of them: that a
// condition always comes to the same, that what stands in the part that is not chosen cannot be,
// that a parameter which may be empty is no id or key, and that some value of one does not go with
// the default of another. cfn-lint, which follows conditions, has no objection (tox -e template).
const EXPECTED = [
  "W1001", "W1028", "W2503", "W8003", "E1150", "E1151", "E1154", "E3047", "F3017", "F3031",
];

class TemplateStack extends Stack {
  constructor(scope, id, props, template, known) {
    super(scope, id, props);
    for (const rule of EXPECTED) {
      const reason = "The template has parts for everything that its parameters can say.";
      Validations.of(this).acknowledge({ id: `CloudFormation-Validate::${rule}`, reason });
    }
    /** The template: getResource(), getOutput() and the like, by the names that it has for them. */
    this.include = new CfnInclude(this, "Template", {
      templateFile: path.join(PLACE, template),
      parameters: given(this, props, known.parameters),
    });
    for (const [name, policy] of Object.entries(known.updatePolicies)) {
      // What CfnInclude makes of a function in it would be refused, or be no policy.
      const resource = this.resource(name);
      resource.cfnOptions.updatePolicy = undefined;
      resource.addOverride("UpdatePolicy", policy);
    }
  }

  /** A resource of the template by its name there, to change what no parameter does. */
  resource(name) {
    return this.include.getResource(name);
  }

  /** The value of an output of the template, for other stacks. */
  output(name) {
    return this.include.getOutput(name).value;
  }
}

/** What is kept: tables, their stream and the topic. */
class RoomcastDataStack extends TemplateStack {
  constructor(scope, id, props = {}) {
    super(scope, id, props, "data.yaml", TEMPLATES.data);
  }
}

/** What works on the data. `dataStack`: a RoomcastDataStack, or the name of a stack. */
class RoomcastStack extends TemplateStack {
  constructor(scope, id, props) {
    const { dataStack } = props;
    const stack = dataStack instanceof Stack ? dataStack : undefined;
    super(scope, id, stack ? { ...props, dataStack: stack.stackName } : props, "template.yaml", TEMPLATES.fleet);
    if (stack) this.addStackDependency(stack, "It imports what that stack exports.");
  }
}

/**
 * Values by the names of the parameters. Those that are not given stay parameters with their
 * defaults. Throws for what CloudFormation would refuse: it no longer sees what it would judge.
 */
function given(stack, props, parameters) {
  const values = {};
  for (const [name, parameter] of Object.entries(parameters)) {
    const value = props[parameter.prop];
    const refuse = (why) => {
      throw new Error(`${stack.node.path}: ${parameter.prop} ${why}`);
    };
    if (value === undefined) {
      if (parameter.required) refuse("must be given");
      continue;
    }
    if (Token.isUnresolved(value)) {
      // CloudFormation lets conditions refer to nothing that is made.
      if (parameter.decides) refuse("decides what is made, so it must be known when the app is synthesized");
      values[name] = value;
      continue;
    }
    const wanted = { boolean: "boolean", number: "number", text: "string" }[parameter.kind];
    if (wanted ? typeof value !== wanted : !Array.isArray(value)) refuse(`is not a ${wanted ?? "list"}`);
    const text = wanted ? String(value) : value.join(",");
    if (parameter.pattern && !new RegExp(`^(?:${parameter.pattern})$`).test(text)) {
      refuse(`must match ${parameter.pattern}`);
    }
    if (parameter.allowed && !parameter.allowed.includes(text)) {
      refuse(`must be one of ${parameter.allowed.join(", ")}`);
    }
    if (value < parameter.least) refuse(`must be ${parameter.least} or more`);
    if (value > parameter.most) refuse(`must be ${parameter.most} or less`);
    values[name] = parameter.kind === "number" ? value : text;
  }
  return values;
}

module.exports = { RoomcastDataStack, RoomcastStack };
