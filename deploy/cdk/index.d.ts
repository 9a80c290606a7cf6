import { CfnResource, Stack, StackProps } from "aws-cdk-lib/core";
import { CfnInclude } from "aws-cdk-lib/cloudformation-include";
import { Construct } from "constructs";
import { DataOutput, DataParameters, FleetOutput, FleetParameters } from "./parameters";

export { DataOutput, DataParameters, FleetOutput, FleetParameters };

/** A stack of one of the templates, with the names that the template has. */
declare abstract class TemplateStack<Output extends string> extends Stack {
  /** The template: getResource(), getOutput(), getCondition() and the like. */
  readonly include: CfnInclude;
  /** A resource of the template by its name there, to change what no parameter does. */
  resource(name: string): CfnResource;
  /** The value of an output of the template, for other stacks. */
  output(name: Output): string;
}

export interface RoomcastDataStackProps extends StackProps, DataParameters {}

/** What is kept: tables, their stream and the topic. */
export declare class RoomcastDataStack extends TemplateStack<DataOutput> {
  constructor(scope: Construct, id: string, props?: RoomcastDataStackProps);
}

export interface RoomcastStackProps extends StackProps, Omit<FleetParameters, "dataStack"> {
  /** The stack with the data, which is then deployed before, or the name of one. */
  readonly dataStack: RoomcastDataStack | string;
}

/** What works on the data: Lambdas, nodes and the load balancer. */
export declare class RoomcastStack extends TemplateStack<FleetOutput> {
  constructor(scope: Construct, id: string, props: RoomcastStackProps);
}
