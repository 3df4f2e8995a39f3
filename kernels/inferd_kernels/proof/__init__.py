"""Tools that prove things about the Triton kernels on a machine without a GPU. No production code imports this
package."""
