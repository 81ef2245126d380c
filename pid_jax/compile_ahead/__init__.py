"""Compiles the product's programs for accelerators that this machine lacks, and reads the result.

    targets    the accelerators and how their compilers are reached
    chips      memory and rates of each chip, with sources
    programs   the product's programs, traced from shapes for a target
    hlo        the compiled program's text as data
    parts      the part of the model that an instruction belongs to
    traffic    bytes that an instruction reads and writes
    flops      floating-point operations, counted from the traced program
    estimate   all of these for one program
    report     the table and the JSON

All figures are estimates of compilers. None was measured on an accelerator.
"""
