//! Every form of virtual machine is seen and understood, or left alone with a reason.
